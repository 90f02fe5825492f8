"""Functions whose results are kept on disk. The key: the arguments, the settings that were read, the code they depend on.

    @memo(VAE.from_artifact)
    def trained_vae(settings: Profile, seed: int) -> VAE: …

The settings are handed on in a wrapper that notes which of them are read, here and in cached functions called from here, so
that a change to any other leaves the result in place. The code is the import closure of the function's module.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from flownlib.harness.cache import find, keep
from flownlib.harness.closure import fingerprint
from flownlib.harness.profiles import Profile
from flownlib.weights import Artifact

Result = TypeVar("Result")


class Reads:
    """Settings that note which of them were read, in `log`: name → value."""

    def __init__(self, settings: Profile | Reads, log: dict[str, Any], fixed: frozenset[str] = frozenset()) -> None:
        self._settings, self._log, self._fixed = settings, log, fixed

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        if name not in self._fixed and not callable(value):
            self._log[name] = value
        return value

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
        restore: from the stored artefact to what callers get, also right after the computation.
        ignore: parameters that change no result.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Result]:
        signature = inspect.signature(function)

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
            return restore(Artifact(stored.tensors, stored.meta["meta"]))

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
    if isinstance(value, nn.Module):
        return [type(value).__name__, digest(dict(value.state_dict()))]
    if callable(getattr(value, "digest", None)):
        return value.digest()
    if isinstance(value, Mapping):
        return {str(name): digest(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [digest(item) for item in value]
    if is_dataclass(value):
        return [type(value).__name__, {field.name: digest(getattr(value, field.name)) for field in fields(value)}]
    raise TypeError(f"a {type(value).__name__} cannot be part of a cache key")


def _find(stem: str, settings: Mapping[str, Profile | Reads]) -> Artifact | None:
    """The stored result whose settings, those that were read, have today's values; reading them here counts as well."""
    for stored in find(f"{stem}-"):
        reads = stored.meta["reads"]
        now = {name: {read: getattr(settings[name], read, None) for read in reads[name]} for name in reads}
        if now == reads:
            return stored
    return None


def _as_artifact(result: Any, reads: dict[str, dict[str, Any]]) -> Artifact:
    if isinstance(result, Mapping):
        result = Artifact(dict(result))
    elif not isinstance(result, Artifact):
        result = result.as_artifact()
    return Artifact(result.tensors, {"reads": reads, "meta": result.meta})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
