"""Low-rank adaptation (Hu et al. 2022): networks of many tasks near one base, written as factors of how their layers changed.

A factored tensor changes by a product B A of two thin matrices. Any invertible G gives the same product, (B G)(G⁻¹ A), so
latents are made unique by the balanced factors of a singular value decomposition before anything is learned from them.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flownlib.encoders import Standardiser, described
from flownlib.networks import Model
from flownlib.scoring import Split
from flownlib.speed.loops import train_many
from flownlib.weights import Artifact, Layout
from flownlib.zoo import Zoo


@dataclass(frozen=True)
class LoRA:
    """All weights that differ from a base [p] by B A in the `factored` tensors and by anything in the `whole` ones.

    Latents [n, k] are the entries of B [out, rank] and A [rank, in] for each factored tensor, and the differences
    themselves for each whole one, standardised. A convolution's kernel [out, in, k, k] counts as a matrix [out, in k k].
    """

    layout: Layout
    base: Tensor
    rank: int
    factored: tuple[str, ...]
    whole: tuple[str, ...]
    standardiser: Standardiser

    @classmethod
    def of(
        cls,
        layout: Layout,
        base: Tensor,
        rank: int,
        factored: Sequence[str] = ("*.weight",),
        whole: Sequence[str] = ("*.bias",),
    ) -> LoRA:
        """A space whose latents are not scaled yet, see `standardised`.

        Args:
            base: [p]. rank: 0 leaves the factored tensors as they are. factored, whole: patterns of tensor names, such as
                "layer4.*.conv*.weight"; a tensor that both match is adapted whole.

        Raises:
            ValueError: if nothing is adapted or matched by a pattern, a factored tensor is no matrix, or the rank is too high.
        """
        if not (factored or whole):
            raise ValueError("a LoRA space needs tensors to adapt: name some in `factored` or in `whole`")
        for pattern in (*factored, *whole):
            if not _matching(layout, (pattern,)):
                raise ValueError(f"no tensor matches {pattern!r}; the layout has {described(layout)}")
        in_whole = _matching(layout, whole)
        in_factored = tuple(name for name in _matching(layout, factored) if name not in in_whole)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if name in in_factored and len(shape) < 2:
                raise ValueError(f"tensor {name!r} of shape {shape} is no matrix: adapt it whole or not at all")
            if name in in_factored and not 0 <= rank <= min(shape[0], math.prod(shape[1:])):
                raise ValueError(f"a change of {name!r} has a rank from 0 to {min(shape[0], math.prod(shape[1:]))}, not {rank}")
        layout.unflatten(base)  # refuses another length
        latent_size = _latent_layout(layout, rank, in_factored, in_whole).size
        unscaled = Standardiser(base.new_zeros(latent_size), base.new_ones(latent_size))
        return cls(layout, base, rank, in_factored, in_whole, unscaled)

    @cached_property
    def latent_layout(self) -> Layout:
        """Where `<tensor>.B`, `<tensor>.A` and the whole tensors lie in a latent vector."""
        return _latent_layout(self.layout, self.rank, self.factored, self.whole)

    @property
    def latent_dim(self) -> int:
        """k."""
        return self.latent_layout.size

    @property
    def adapted_size(self) -> int:
        """How many numbers the adapted tensors hold."""
        places = self.layout.slices()
        return sum(places[name].stop - places[name].start for name in (*self.factored, *self.whole))

    @classmethod
    def fit(cls, zoo: Zoo, rank: int) -> LoRA:
        """Every matrix of the zoo's mean network changes by a product of this rank, its biases freely; scaled on the zoo."""
        return cls.of(zoo.layout, zoo.weights.mean(0), rank).standardised(zoo.weights)

    def standardised(self, weights: Tensor) -> LoRA:
        """The same space with latents centred and, for each B, A and whole tensor, of unit scale on adapted networks [n, p]."""
        return replace(
            self, standardiser=Standardiser.fit(self.latent_layout.flatten(self._factors(weights)), self.latent_layout)
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents [n, k] that decode to the base: B and whole changes are zero, A is uniform with variance 1 / (3 in)."""
        parts = {}
        for name, shape in zip(self.latent_layout.names, self.latent_layout.shapes, strict=True):
            parts[name] = self.base.new_zeros(n, *shape)
            if name.removesuffix(".A") in self.factored:
                uniform = 2 * torch.rand(n, *shape, generator=generator, dtype=self.base.dtype, device=generator.device) - 1
                parts[name] += uniform.to(self.base.device) / math.sqrt(shape[1])
        return self.standardiser.forward(self.latent_layout.flatten(parts))

    def encode(self, weights: Tensor) -> Tensor:
        """Latents [n, k] of the weights [n, p] nearest in this space (Eckart and Young 1936), in canonical form."""
        return self.standardiser.forward(self.latent_layout.flatten(self._factors(weights)))

    def decode(self, latents: Tensor) -> Tensor:
        """Weights [n, p]."""
        parts = self.latent_layout.unflatten(self.standardiser.inverse(latents))
        tensors = self.layout.unflatten(self.base.expand(len(latents), -1))
        for name in self.whole:
            tensors[name] = tensors[name] + parts[name]
        for name in self.factored:
            # W = W_0 + B A
            tensors[name] = tensors[name] + (parts[f"{name}.B"] @ parts[f"{name}.A"]).view_as(tensors[name])
        return self.layout.flatten(tensors)

    def canonical(self, latents: Tensor) -> Tensor:
        """The one form [n, k] of all latents that differ by (B, A) → (B G, G⁻¹ A) only; it decodes to the same weights."""
        parts = self.latent_layout.unflatten(self.standardiser.inverse(latents))
        for name in self.factored:
            parts |= _named(name, *balanced_product(parts[f"{name}.B"], parts[f"{name}.A"]))
        return self.standardiser.forward(self.latent_layout.flatten(parts))

    def _factors(self, weights: Tensor) -> dict[str, Tensor]:
        """B, A and whole changes, not standardised."""
        tensors, base = self.layout.unflatten(weights), self.layout.unflatten(self.base)
        changes = {name: tensors[name] - base[name] for name in tensors}
        parts = {name: changes[name] for name in self.whole}
        for name in self.factored:
            u, s, v = torch.linalg.svd(changes[name].flatten(2), full_matrices=False)
            parts |= _named(name, *balanced(u[..., : self.rank], s[..., : self.rank], v[..., : self.rank, :]))
        return parts

    def as_artifact(self) -> Artifact:
        """Tensors and facts, to be stored."""
        tensors = {"base": self.base, "latent_mean": self.standardiser.mean, "latent_scale": self.standardiser.scale}
        meta = {"encoder": "lora", "layout": self.layout.as_json(), "rank": self.rank}
        return Artifact(tensors, meta | {"factored": list(self.factored), "whole": list(self.whole)})

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> LoRA:
        """The inverse of `as_artifact`."""
        meta, tensors = artifact.meta, artifact.tensors
        scaling = Standardiser(tensors["latent_mean"], tensors["latent_scale"])
        adapted = tuple(meta["factored"]), tuple(meta["whole"])
        return cls(Layout.from_json(meta["layout"]), tensors["base"], meta["rank"], *adapted, scaling)


def balanced(u: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """B [n, out, r] and A [n, r, in] with B A = U S Vᵀ and BᵀB = A Aᵀ; each column's largest entry in B is positive.

    Args:
        u: [n, out, r]. s: [n, r], decreasing. v: Vᵀ [n, r, in].
    """
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()  # [n, 1, r]
    root = s.sqrt()[..., None, :]
    # B = U √S,  A = √S Vᵀ
    return u * sign * root, (sign * root).mT * v


def balanced_product(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The balanced factors of B A, from matrices of the rank's size: B = Q_b R_b and Aᵀ = Q_a R_a leave R_b R_aᵀ [n, r, r]."""
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.mT)
    u, s, v = torch.linalg.svd(r_b @ r_a.mT)
    return balanced(q_b @ u, s, v @ q_a.mT)


@dataclass(frozen=True, eq=False)
class LatentClassifier:
    """A classifier whose weights are given as latents, so that it is trained and evaluated like any other."""

    model: Model
    space: LoRA

    @property
    def layout(self) -> Layout:
        """Where each tensor of the latents lies."""
        return self.space.latent_layout

    def __getattr__(self, name: str) -> Any:
        """The model's own image_shape, num_classes and largest_activation."""
        if name in ("image_shape", "num_classes", "largest_activation"):
            return getattr(self.model, name)
        raise AttributeError(name)

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        """Logits [m, b, classes] of m networks given by latents [m, k]; images as for the model."""
        return self.model.forward(self.space.decode(latents), x)


def adapt(
    model: Model,
    space: LoRA,
    start: Tensor,
    data: Split,
    orders: Tensor,
    learning_rate: float | Tensor,
    record: Sequence[int] = (),
) -> Tensor:
    """Adapt the base to m tasks at once, by Adam on their latents.

    Args:
        start: latents [m, k], such as `space.start`. data: the images of all tasks. orders: int64 [m, steps, batch], which
            of them each task sees at each step. learning_rate: one for all, or [m]. record: steps after which to keep a
            copy; the last step if empty.

    Returns:
        Canonical latents [len(record), m, k].

    Raises:
        ValueError: for the reasons that `train_many` has.
    """
    trained = train_many(LatentClassifier(model, space), start, data, orders, learning_rate, record, backend="torch")
    return space.canonical(trained.flatten(0, 1)).view_as(trained)


def _matching(layout: Layout, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in layout.names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def _latent_layout(layout: Layout, rank: int, factored: Sequence[str], whole: Sequence[str]) -> Layout:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name in factored:
            shapes |= {f"{name}.B": (shape[0], rank), f"{name}.A": (rank, math.prod(shape[1:]))}
        elif name in whole:
            shapes[name] = shape
    return Layout(tuple(shapes), tuple(shapes.values()))


def _named(name: str, b: Tensor, a: Tensor) -> dict[str, Tensor]:
    return {f"{name}.B": b, f"{name}.A": a}
