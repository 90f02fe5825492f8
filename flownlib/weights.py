"""Weights as vectors: where each tensor of a state dict lies in one, the exact way back, and which axes carry hidden units."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
        """The layout of a state dict's floating-point tensors whose names match one of the patterns (`"head.*"`).

        Raises:
            ValueError: if no tensor matches.
        """
        chosen = {
            name: tuple(tensor.shape)
            for name, tensor in state.items()
            if tensor.is_floating_point() and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
        if not chosen:
            raise ValueError(f"no floating-point tensor matches {patterns}; the state dict has {list(state)[:8]}")
        return cls(tuple(chosen), tuple(chosen.values()))

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

    def views(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat weights [..., p] → named tensors [..., *shape], without copying.

        Raises:
            ValueError: if the last dimension is not p.
        """
        if weights.shape[-1] != self.size:
            raise ValueError(f"this layout holds {self.size} numbers a network, the weights have {weights.shape[-1]}")
        lead = weights.shape[:-1]
        # one split, so that one concatenation collects the gradients
        parts = weights.split([math.prod(shape) for shape in self.shapes], dim=-1)
        return {name: part.reshape((*lead, *shape)) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `views`: named tensors [..., *shape] → flat weights [..., p].

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

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """One flat vector [p] → a state dict of its own memory, ready for `load_state_dict(strict=True)`."""
        return {name: tensor.clone() for name, tensor in self.views(vector).items()}

    def tensor_of_each_weight(self) -> Tensor:
        """int64 [p]: the index in `names` of the tensor that each weight belongs to."""
        sizes = torch.tensor([math.prod(shape) for shape in self.shapes])
        return torch.repeat_interleave(torch.arange(len(self.names)), sizes)

    def as_json(self) -> list:
        """[[name, shape], …], the form stored beside every zoo."""
        return [[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)]

    @classmethod
    def from_json(cls, rows: list) -> Layout:
        """The inverse of `as_json`."""
        return cls(tuple(name for name, _ in rows), tuple(tuple(shape) for _, shape in rows))


Tensors = dict[str, Tensor]


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
class Norm:
    """A layer and the batch norm that alone reads it, which divides its scale out again.

    (s a - s mean) / sqrt(s² (variance + epsilon)) = (a - mean) / sqrt(variance + epsilon), so the filters, their bias and
    the running mean (`multiplied`) can be multiplied by s, if the running variance goes to s² (variance + epsilon) - epsilon.
    The norm goes on to mean the same in training mode, which it would not if its mean were moved into its bias.
    """

    multiplied: tuple[Axis, ...]
    variance: Axis
    epsilon: float


@dataclass(frozen=True)
class Symmetries:
    """All that is stated about an architecture, in the order of the forward pass."""

    groups: tuple[Group, ...]
    rescalings: tuple[Rescaling, ...] = ()
    norms: tuple[Norm, ...] = ()

    @property
    def tensors(self) -> set[str]:
        """Names of all tensors that an exchange or a rescaling would change."""
        axes = [axis for group in self.groups for axis in group.axes]
        axes += [axis for rescaling in self.rescalings for axis in rescaling.multiplied + rescaling.divided]
        axes += [axis for norm in self.norms for axis in (*norm.multiplied, norm.variance)]
        return {axis.tensor for axis in axes}


def token_places(layout: Layout, size: int) -> Tensor:
    """Which weights make up each token, int64 [tokens, length]; p stands for padding.

    With a `size` above zero tokens are chunks of that many neighbours in the flat vector (SANE, Schürholt et al. 2024); with
    zero every unit is a token: its incoming weights and its bias.

    Raises:
        ValueError: if tokens shall be units and a tensor is neither a weight nor the bias of one.
    """
    p, flat = layout.size, torch.arange(layout.size)
    if size > 0:
        return F.pad(flat, (0, -p % size), value=p).view(-1, size)
    rows, places = [], layout.views(flat)
    for name in layout.names:
        bias = places.get(f"{name.removesuffix('.weight')}.bias")
        if name.endswith(".weight") and bias is not None:
            rows += torch.cat([places[name].flatten(1), bias[:, None]], dim=1)
    if sum(map(len, rows)) != p:
        raise ValueError("units are tokens only where every tensor is a weight or its bias; choose a token_size above zero")
    longest = max(map(len, rows))
    return torch.stack([F.pad(row, (0, longest - len(row)), value=p) for row in rows])
