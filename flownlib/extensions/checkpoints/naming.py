"""Which of a file's tensors are the model's: whichever naming fits the module wins, and what fits twice is asked about."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flownlib.extensions.checkpoints.reading import CheckpointError, listed, one_line, tensor_maps
from flownlib.extensions.module_checks import first_line, named_tensors, unusable
from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import Classifier
from flownlib.weights import first_few

log = logging.getLogger(__name__)
PREFIXES = ("module.", "model.", "_orig_mod.", "_forward_module.")  # DataParallel, Lightning, torch.compile, Fabric
INSIDE = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # of a wrapped sub-module
COUNTER = "num_batches_tracked"  # of batch norms; says nothing about the network


@dataclass(frozen=True)
class Fit:
    """Tensors under the model's names, where in the file they were, and the names of others beside the prefix."""

    key: str
    tensors: dict[str, Tensor]
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Reader:
    """How files are read as networks of one model.

    Args:
        key: which mapping of tensors in the file, such as "params_ema". rename: a name in the file → the model's name.
        subset: take the model's tensors from a file that has more of them.
    """

    model: Classifier | ModuleClassifier
    key: str | None = None
    rename: Mapping[str, str] | None = None
    subset: bool = False

    def vector(self, path: Path | str) -> Tensor:
        """One file's weights as float32 [p] in the model's layout, data without gradients.

        Raises:
            CheckpointError: if the file cannot be read, is not a network of this model, or holds numbers that are not finite.
        """
        path = Path(path)
        try:
            return self._vector(path)
        except CheckpointError:
            raise
        except Exception as error:  # one odd file never stops the others
            raise CheckpointError(f"{path} cannot be read: {first_line(error)}.") from error

    def _vector(self, path: Path) -> Tensor:
        fit = self._fit(tensor_maps(path), path)
        if fit.beside:
            log.warning("%s", one_line(f"{path}: left aside what is no part of the network: {first_few(fit.beside)}"))
        self._check_names(fit, path)
        vector = self._joined(fit.tensors, path)
        check_rest(fit.tensors, self.model, path)
        if not vector.isfinite().all():
            bad = next(name for name, tensor in self.model.layout.unflatten(vector).items() if not tensor.isfinite().all())
            raise CheckpointError(f"{path} has a number that is not finite in {bad!r}.")
        return vector

    def _fit(self, maps: dict[str, dict[str, Tensor]], path: Path) -> Fit:
        """The one naming under which the file has the model's tensors: exact names first, then names without prefixes."""
        exact, cleaned, nearest, aliases = [], [], [], self._aliases
        for place, tensors in maps.items():
            for i, fit in enumerate(namings(place, self._renamed(tensors, path))):
                if self.key not in (None, place, fit.key):
                    continue
                missing = [name for name, others in aliases.items() if not others & fit.tensors.keys()]
                nearest.append((len(missing), missing))
                if not missing:
                    (cleaned if i else exact).append(fit)
                    if not i:
                        break
        if not nearest:
            raise CheckpointError(f"{path} has no tensors under {self.key!r}; it holds {listed(maps)}.")
        fits = exact or cleaned
        if not fits:
            raise CheckpointError(
                f"{path} is not a {self.model.name}: it has no tensor {min(nearest)[1][0]!r}; it holds {listed(maps)}, where "
                'key="…" chooses a set and rename={"its name": "the model\'s"} gives other names.'
            )
        right = [fit for fit in fits if not self._wrong_shape(fit)] or fits
        if any(not self._same(right[0], other) for other in right[1:]):
            keys = ", ".join(f"key={fit.key!r}" for fit in right[:4])
            raise CheckpointError(f"{path} holds several networks that fit; choose one of {keys}.")
        return right[0]

    @property
    def _aliases(self) -> dict[str, set[str]]:
        """Each weight's name in the layout → all names under which a file may have it."""
        names = {name: {name} for name in self.model.layout.names}
        for name, first in self.model.tied.items() if isinstance(self.model, ModuleClassifier) else ():
            if first in names:
                names[first].add(name)
        return names

    def _renamed(self, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The tensors under the names that the caller gives them."""
        if not self.rename:
            return tensors
        renamed = {self.rename.get(name, name): tensor for name, tensor in tensors.items()}
        if len(renamed) < len(tensors):
            raise CheckpointError(f"{path} would have two tensors of one name after `rename`.")
        return renamed

    def _wrong_shape(self, fit: Fit) -> str:
        """What is wrong with the first tensor of another shape, as the end of a sentence; empty if there is none."""
        for (_, others), shape in zip(self._aliases.items(), self.model.layout.shapes, strict=True):
            for alias in others & fit.tensors.keys():
                if tuple(fit.tensors[alias].shape) != shape:
                    return f"its {alias!r} is {_sizes(fit.tensors[alias].shape)}, not {_sizes(shape)}"
        return ""

    def _same(self, a: Fit, b: Fit) -> bool:
        """Whether two fits hold the same numbers."""
        for others in self._aliases.values():
            x, y = (next(fit.tensors[name] for name in sorted(others) if name in fit.tensors) for fit in (a, b))
            if x is not y and (unusable(x) or unusable(y) or not torch.equal(x, y)):
                return False
        return True

    def _check_names(self, fit: Fit, path: Path) -> None:
        """Shapes agree, and the file has no more than the model, unless a part of it is asked for."""
        if reason := self._wrong_shape(fit):
            raise CheckpointError(f"{path} is not a {self.model.name}: {reason}.")
        own = isinstance(self.model, ModuleClassifier)
        if self.subset or (own and self.model.patterns != ("*",)):
            return
        known = (
            set(self.model.template.state_dict()) | dict(named_tensors(self.model.template)).keys() if own else self._aliases
        )
        extra = [name for name in fit.tensors if name not in known and not name.endswith(COUNTER)]
        if extra:
            more = f"it has more tensors than the model, {first_few(extra)}; if a part of the file is meant, say subset=True"
            raise CheckpointError(f"{path} is not a {self.model.name}: {more}.")

    def _joined(self, tensors: dict[str, Tensor], path: Path) -> Tensor:
        """The weights in the layout's order; tied tensors must agree."""
        weights = {}
        for name, others in self._aliases.items():
            first, *rest = sorted(others & tensors.keys(), key=lambda alias: alias != name)
            for alias in (first, *rest):
                if reason := unusable(tensors[alias]):
                    raise CheckpointError(f"{path} cannot be used: its {alias!r} {reason}.")
                if not tensors[alias].is_floating_point():
                    what = f"holds {tensors[alias].dtype} numbers, not real floating-point ones"
                    raise CheckpointError(f"{path} cannot be used: its {alias!r} {what}.")
            if other := next((alias for alias in rest if not torch.equal(tensors[first], tensors[alias])), None):
                raise CheckpointError(
                    f"{path} is not a {self.model.name}: its {first!r} and {other!r} differ, and are one there."
                )
            weights[name] = tensors[first].float()
        return self.model.layout.flatten(weights).detach()


def namings(key: str, tensors: dict[str, Tensor], depth: int = 6) -> Iterator[Fit]:
    """The tensors under their own names, then without documented prefixes, then without those inside of names."""
    yield Fit(key, tensors, ())
    if not depth:
        return
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if inner:
            beside = tuple(name for name in tensors if not name.startswith(prefix))
            for fit in namings(f"{key}.{prefix[:-1]}".strip("."), inner, depth - 1):
                yield Fit(fit.key, fit.tensors, (*beside, *fit.beside))
    bare = {".".join(part for part in name.split(".") if part not in INSIDE): t for name, t in tensors.items()}
    if bare.keys() != tensors.keys() and len(bare) == len(tensors):
        yield from namings(key, bare, depth - 1)


def check_rest(state: Mapping[str, Tensor], model: Classifier | ModuleClassifier, path: Path | str) -> None:
    """Refuse a checkpoint that differs from the model in what is not among its weights: they would not fit together.

    Raises:
        CheckpointError: naming the first tensor that differs.
    """
    if not isinstance(model, ModuleClassifier):
        return
    for name, ours in named_tensors(model.template):
        if model.tied[name] in model.layout.names or name.endswith(COUNTER) or name not in state:
            continue
        theirs = state[name]
        if reason := unusable(theirs):
            raise CheckpointError(f"{path} cannot be used: its {name!r} {reason}.")
        kinds = [(t.shape, t.is_floating_point(), t.is_complex()) for t in (ours, theirs)]
        if kinds[0] != kinds[1] or not torch.equal(ours.to(theirs.dtype), theirs):
            raise CheckpointError(
                f"{path} has another {name!r} than the model, and it is not among the weights: build the model with what its "
                'checkpoints share, or take all of their tensors, by patterns=("*",) and statistics=True.'
            )


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
