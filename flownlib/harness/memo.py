"""Functions whose results are kept on disk. The key: the arguments, the settings that were read, the code they depend on.

    @memo(VAE.from_artifact)
    def trained_vae(settings: Profile, seed: int) -> VAE: …

The settings are handed on in a wrapper that notes which of them are read, here and in cached functions called from here, so
that a change to any other leaves the result in place. The code is the import closure of the function's module. Not in the
key: versions of packages, the number of threads, the device and what else the environment says. They change a result by
rounding only, since random numbers are drawn on the processor: what a GPU made serves a machine without one.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from flownlib.harness.cache import find, keep
from flownlib.harness.closure import fingerprint
from flownlib.harness.devices import device_of
from flownlib.harness.profiles import Profile
from flownlib.weights import Artifact

Result = TypeVar("Result")


class Reads:
    """Settings that note which of them were read, in `log`: name → value."""

    def __init__(self, settings: Profile | Reads, log: dict[str, Any], fixed: frozenset[str] = frozenset()) -> None:
        self._settings, self._log, self._fixed = settings, log, fixed

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        if callable(value):
            return functools.partial(getattr(type(_bare(self)), name), self)  # so that what a method reads is noted too
        if name not in self._fixed and name != "device":
            self._log[name] = value
        return value

    def __reduce__(self) -> Any:
        raise TypeError("settings cannot leave a cached function for another process, where nobody notes what is read")

    @property
    def read(self) -> dict[str, Any]:
        """The settings read so far."""
        return dict(self._log)

    def changed(self, **changes: Any) -> Reads:
        """The same settings with some replaced; those no longer depend on what was chosen."""
        return Reads(self._settings.changed(**changes), self._log, self._fixed | set(changes))

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, and all of them count as read."""
        return {name: getattr(self, name) for name in self._settings.as_dict()}


def tensors(artifact: Artifact) -> dict[str, Tensor]:
    """A `restore` for functions that return named tensors."""
    return artifact.tensors


def memo(
    restore: Callable[[Artifact], Result], ignore: tuple[str, ...] = ("progress",)
) -> Callable[[Callable[..., Any]], Callable[..., Result]]:
    """A decorator: the function's result, from disk where it was computed before with equal arguments, settings and code.

    The function returns an `Artifact`, named tensors, or something with `as_artifact()`.

    Args:
        restore: from the stored artefact, on the device of the settings, to what callers get, also right after the computation.
        ignore: parameters that change no result.

    Raises:
        ValueError: for a function inside another whose variables it uses: they would be missing from the key.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Result]:
        signature = inspect.signature(function)
        if function.__closure__:
            raise ValueError(f"{function.__qualname__} uses variables of the function around it: make them arguments")

        @functools.wraps(function)
        def remembered(*args: Any, **kwargs: Any) -> Result:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            stem = key_of(function, {k: v for k, v in bound.arguments.items() if k not in ignore})
            settings = {k: v for k, v in bound.arguments.items() if isinstance(v, Profile | Reads)}

            def compute() -> tuple[str, Artifact]:
                reads: dict[str, dict[str, Any]] = {name: {} for name in settings}
                bound.arguments.update({name: Reads(value, reads[name]) for name, value in settings.items()})
                artifact = _as_artifact(function(*bound.args, **bound.kwargs), reads)
                return f"{stem}-{_hash(reads)}", artifact

            stored = _find(stem, settings) or keep(compute)
            device = device_of(next(iter(settings.values()))) if settings else "cpu"
            return restore(Artifact({k: v.to(device) for k, v in stored.tensors.items()}, stored.meta["meta"]))

        return remembered

    return decorate


def key_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """`<function>-<16 hex digits>`: the part of an address that is known before the function runs."""
    plain = {name: digest(value) for name, value in arguments.items() if not isinstance(value, Profile | Reads)}
    return f"{function.__name__}-{_hash([function.__qualname__, fingerprint(function.__module__), plain])}"


def digest(value: Any) -> Any:
    """A JSON value that is equal for equal arguments.

    Raises:
        TypeError: for an argument that has no such value.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous()
        return [str(numbers.dtype), list(numbers.shape), hashlib.sha256(numbers.numpy().tobytes()).hexdigest()]
    if callable(getattr(value, "digest", None)):
        return value.digest()
    if isinstance(value, Mapping):
        return {json.dumps(digest(name)): digest(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [digest(item) for item in value]
    if is_dataclass(value):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return [kind, {field.name: digest(getattr(value, field.name)) for field in fields(value)}]
    raise TypeError(f"a {type(value).__name__} cannot be part of a cache key")


def _find(stem: str, settings: Mapping[str, Profile | Reads]) -> Artifact | None:
    """The stored result whose settings, those that were read, have today's values; reading its settings here counts as well."""
    for stored in find(f"{stem}-"):
        read = [(name, setting, value) for name, values in stored.meta["reads"].items() for setting, value in values.items()]
        if all(getattr(_bare(settings[name]), setting, None) == value for name, setting, value in read):
            for name, setting, _ in read:
                getattr(settings[name], setting)
            return stored
    return None


def _bare(settings: Profile | Reads) -> Profile:
    """The settings themselves, which note nothing."""
    return _bare(settings._settings) if isinstance(settings, Reads) else settings


def _as_artifact(result: Any, reads: dict[str, dict[str, Any]]) -> Artifact:
    if isinstance(result, Mapping):
        result = Artifact(dict(result))
    elif not isinstance(result, Artifact):
        result = result.as_artifact()
    return Artifact(result.tensors, {"reads": reads, "meta": result.meta})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
