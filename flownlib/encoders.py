"""Weights ↔ latents behind one protocol, and the report that every encoder owes before a flow is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from flownlib.scoring import Task, score
from flownlib.weights import Artifact, Float, Latents, Layout, Vector, Weights, check_real
from flownlib.zoo import Zoo


class Encoder(Protocol):
    """Anything that turns weights [n, p] into latents [n, k] of about unit scale, and back."""

    latent_dim: int
    layout: Layout

    def encode(self, weights: Weights) -> Latents:
        """Latents [n, k]."""

    def decode(self, latents: Latents) -> Weights:
        """Weights [n, p]."""

    def as_artifact(self) -> Artifact:
        """Everything that `from_artifact` of the same class needs."""


def described(layout: Layout) -> str:
    """For example "2,464 numbers (conv1.weight 8×1×5×5, …, fc2.bias 10)"."""
    ends = [(layout.names[i], "×".join(map(str, layout.shapes[i])) or "1") for i in (0, -1)]
    return f"{layout.size:,} numbers ({ends[0][0]} {ends[0][1]}, …, {ends[1][0]} {ends[1][1]})"


@dataclass(frozen=True)
class Standardiser:
    """Centres weights and divides each tensor of the layout by one scale, so that layers weigh alike."""

    mean: Vector
    scale: Vector

    @classmethod
    def fit(cls, weights: Weights, layout: Layout) -> Standardiser:
        """Mean [p] over networks and, per tensor, the root mean square of what is left [p].

        Raises:
            ValueError: for weights that are not finite rows of the layout.
        """
        check_real("networks", weights, (layout.size,))
        mean = weights.mean(0)
        scale = torch.empty_like(mean)
        for place in layout.slices().values():
            scale[place] = (weights[:, place] - mean[place]).square().mean().sqrt().clamp(min=1e-8)
        return cls(mean, scale)

    def forward(self, weights: Tensor) -> Tensor:
        """Standardised weights, same shape; rows of another length would be broadcast, and raise ValueError."""
        self._check(weights)
        return (weights - self.mean) / self.scale

    def inverse(self, standard: Tensor) -> Tensor:
        """Weights, same shape."""
        self._check(standard)
        return standard * self.scale + self.mean

    def _check(self, rows: Tensor) -> None:
        if rows.shape[-1:] != self.mean.shape:
            raise ValueError(f"this encoder takes rows of {len(self.mean)} numbers, not {tuple(rows.shape)}")


@dataclass(frozen=True)
class WeightSpace:
    """The encoder that encodes nothing: latents are the standardised weights themselves."""

    layout: Layout
    standardiser: Standardiser

    @classmethod
    def fit(cls, zoo: Zoo) -> WeightSpace:
        """Standardise by the zoo's own statistics."""
        return cls(zoo.layout, Standardiser.fit(zoo.weights, zoo.layout))

    def as_artifact(self) -> Artifact:
        """Mean, scale and layout."""
        return Artifact(asdict(self.standardiser), {"encoder": "weights", "layout": self.layout.as_json()})

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> WeightSpace:
        """The inverse of `as_artifact`."""
        return cls(Layout.from_json(artifact.meta["layout"]), Standardiser(**artifact.tensors))

    @property
    def latent_dim(self) -> int:
        """p."""
        return len(self.standardiser.mean)

    def encode(self, weights: Weights) -> Weights:
        """Standardised weights [n, p]."""
        return self.standardiser.forward(weights)

    def decode(self, latents: Latents) -> Weights:
        """Weights [n, p]."""
        return self.standardiser.inverse(latents)


@dataclass(frozen=True)
class Reconstruction:
    """decode(encode(w)) on some networks: share of weight variance explained, and accuracies [n] before and after."""

    r2: float
    accuracy_before: Float[Tensor, " n"]
    accuracy_after: Float[Tensor, " n"]


def reconstruct(encoder: Encoder, zoo: Zoo, tasks: Mapping[str, Task], baseline: Vector | None = None) -> Reconstruction:
    """What an encoder keeps of a zoo's networks, each measured on the test images of its own task.

    Args:
        encoder: fitted to the zoo's layout.
        zoo: of n networks.
        tasks: by name, at least those of the zoo.
        baseline: the mean [p] that explains nothing, by default the zoo's own.

    Raises:
        ValueError: if the zoo has another layout than the encoder was fitted to.
    """
    if encoder.layout != zoo.layout:
        takes, holds = described(encoder.layout), described(zoo.layout)
        raise ValueError(f"this encoder takes {takes}, and the zoo holds {holds}; fit one to it")
    with torch.no_grad():
        decoded = encoder.decode(encoder.encode(zoo.weights))
    mean = zoo.weights.mean(0) if baseline is None else baseline
    # R^2 = 1 - |w - w'|^2 / |w - mean|^2
    r2 = 1 - (zoo.weights - decoded).square().sum() / (zoo.weights - mean).square().sum()
    after = torch.empty(len(zoo))
    for name in zoo.tasks:
        rows = torch.tensor((zoo.table["task"] == name).to_numpy())
        after[rows] = score(zoo.model, decoded[rows], tasks[name].test.x, tasks[name].test.y).accuracy.cpu()
    before = torch.tensor(zoo.table["test_accuracy"].to_numpy(), dtype=torch.float32)
    return Reconstruction(float(r2), before, after)
