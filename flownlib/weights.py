"""Weights as vectors: where each tensor of a state dict lies in one, the exact way back, which axes carry hidden units.

And what is refused everywhere in one sentence: numbers that are none, sizes that do not fit, labels out of range.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

try:  # shapes in annotations, which the tests check; nobody else needs the package
    from jaxtyping import Bool, Float, Int
except ImportError:
    Bool = Float = Int = Annotated  # type: ignore[misc,assignment]

Weights = Float[Tensor, "n p"]  # n networks of p numbers
Latents = Float[Tensor, "n k"]
Vector = Float[Tensor, " p"]
Images = Float[Tensor, " b *image"]
Labels = Int[Tensor, " b"]
Tensors = dict[str, Tensor]  # by name


@dataclass(frozen=True)
class Artifact:
    """Named tensors and JSON-serialisable facts about them."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


class ArtifactError(ValueError):
    """What is on disk cannot be read or may not be written; the message is one sentence for the user."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of tensors, in the order in which they are concatenated."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], patterns: tuple[str, ...] = ("*",)) -> Layout:
        """The layout of a state dict's floating-point tensors whose names match one of the patterns, such as "head.*".

        Raises:
            ValueError: if no tensor matches.
        """
        matching = {
            name: tuple(tensor.shape)
            for name, tensor in state.items()
            if tensor.is_floating_point() and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
        if not matching:
            raise ValueError(f"no floating-point tensor matches {patterns}; the state dict has {list(state)[:8]}")
        return cls(tuple(matching), tuple(matching.values()))

    @property
    def size(self) -> int:
        """Length p of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def slices(self) -> dict[str, slice]:
        """Each tensor's place in the flat vector."""
        places, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            places[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        return places

    def unflatten(self, weights: Tensor) -> Tensors:
        """Named tensors [..., *shape] of flat weights [..., p], without copying.

        Raises:
            ValueError: if the last dimension is not p.
        """
        if weights.shape[-1] != self.size:
            raise ValueError(f"this layout holds {self.size} numbers a network, the weights have {weights.shape[-1]}")
        lead = weights.shape[:-1]
        # one split, so that one concatenation collects the gradients
        parts = weights.split([math.prod(shape) for shape in self.shapes], dim=-1)
        return {name: part.reshape((*lead, *shape)) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "*lead p"]:
        """Flat weights [..., p] of named tensors [..., *shape]; the inverse of `unflatten`.

        Raises:
            ValueError: if a tensor is missing or has another shape.
        """
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise ValueError(f"tensor {name!r} is missing; the layout needs {list(self.names)}")
            tensor = tensors[name]
            if tuple(tensor.shape[tensor.dim() - len(shape) :]) != shape:
                raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)}, the layout needs {shape}")
            parts.append(tensor.reshape(*tensor.shape[: tensor.dim() - len(shape)], math.prod(shape)))
        return torch.cat(parts, dim=-1)

    def state_dict(self, vector: Vector) -> Tensors:
        """A state dict, with memory of its own, of one flat vector [p]: ready for `load_state_dict(strict=True)`."""
        return {name: tensor.clone() for name, tensor in self.unflatten(vector).items()}

    def as_json(self) -> list:
        """[[name, shape], …], the form stored beside every zoo."""
        return [[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)]

    @classmethod
    def from_json(cls, rows: list) -> Layout:
        """The inverse of `as_json`."""
        return cls(tuple(name for name, _ in rows), tuple(tuple(shape) for _, shape in rows))


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor along which units lie, each of them in `repeat` neighbouring places.

    A linear layer behind flattened channels [channel][position] has one place for each position of a channel.
    """

    tensor: str
    dim: int
    repeat: int = 1

    def units(self, tensors: Tensors) -> Tensor:
        """The tensor [m, *shape] as [m, before, units, after]: what belongs to unit i is [:, :, i]."""
        tensor = tensors[self.tensor]
        before, size = tensor.shape[1 : 1 + self.dim], tensor.shape[1 + self.dim]
        return tensor.reshape(len(tensor), math.prod(before), size // self.repeat, -1)


@dataclass(frozen=True)
class Group:
    """Units that can be exchanged: one permutation acts on all of these axes, and on all of them or none."""

    units: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Rescaling:
    """Units that can be rescaled: for any s > 0 of each unit, multiply some axes by s and divide others by it.

    Exact where all that lies between the two is positively homogeneous: relu(s a) = s relu(a), sums, pooling.
    """

    multiplied: tuple[Axis, ...]
    divided: tuple[Axis, ...]


@dataclass(frozen=True)
class Symmetries:
    """All that is stated about an architecture, in the order of the forward pass."""

    groups: tuple[Group, ...]
    rescalings: tuple[Rescaling, ...] = ()
    norms: tuple[Any, ...] = ()  # layers before a batch norm, each with a `standardise(tensors)`


def drawn(draw: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Numbers of a shape by torch.rand or randn, moved to where `like` is: a seed gives the same ones on every device."""
    return draw(shape, generator=generator, dtype=like.dtype, device=generator.device if generator else "cpu").to(like.device)


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: a finite sum has finite terms; one that is not may have overflowed."""
    return bool(x.sum().isfinite()) or bool(torch.stack(x.aminmax()).isfinite().all())


def check_count(what: str, count: int) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises:
        ValueError: naming it.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, not {count!r}")


def check_real(what: str, x: Tensor, shape: tuple[int, ...], finite: bool = True) -> None:
    """Refuse anything but floating-point rows [n, *shape], of which there is at least one, and all of them `finite`.

    Raises:
        ValueError: saying what they are instead, and which rows are not finite.
    """
    if not _dense(x) or not x.is_floating_point() or x.shape[1:] != shape or x.dim() == 0 or not x.numel():
        raise ValueError(f"{what} must be floating-point rows of shape {tuple(shape)}, not {_described(x)}")
    if finite and not is_finite(x):
        rows = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{what} {first_few(rows)} of {len(x)} hold numbers that are not finite (NaN or infinite); leave them out"
        )


def check_condition(c: Tensor, size: int) -> None:
    """Refuse anything but one finite condition [size]: another size would be broadcast, and silently mean something else.

    Raises:
        ValueError: naming both sizes.
    """
    if not _dense(c) or c.shape != (size,):
        raise ValueError(f"the generator was fitted to contexts of shape ({size},) and takes one of them, not {_described(c)}")
    if not is_finite(c):
        raise ValueError("the context holds numbers that are not finite (NaN or infinite)")


def whole_numbers(what: str, values: Tensor, below: int | None = None) -> Tensor:
    """The values as int64, side by side in memory; other types of whole numbers are converted, which is exact.

    Raises:
        ValueError: for floating-point values, none at all, or one that is not in 0, …, below - 1.
    """
    if not _dense(values) or values.is_floating_point() or values.is_complex() or not values.numel():
        raise ValueError(f"{what} must be whole numbers (int64), not {_described(values)}")
    values = values.to(torch.int64).contiguous()
    low, high = (int(x) for x in values.aminmax())
    if low < 0 or (below is not None and high >= below):
        wanted = "be at least 0" if below is None else f"lie between 0 and {below - 1}"
        hint = "; subtract 1 if yours count from 1" if (low, high) == (1, below) else ""
        raise ValueError(f"{what} must {wanted}, got {low} to {high}{hint}")
    return values


def _dense(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta


def _described(x: object) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    kind = "" if _dense(x) else f" ({x.device}, {x.layout})"
    return f"{tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}{kind}"


def first_few(items: Sequence[Any], most: int = 5) -> str:
    """The first of some names or numbers, and how many more there are."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")
