"""Where each tensor of a state dict lies in a flat weight vector, and the exact way back."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


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
        return {name: part.reshape(*lead, *shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

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
