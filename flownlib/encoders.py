"""Weights ↔ latents behind one protocol, and the report that every encoder owes before a flow is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from flownlib.checks import check_real
from flownlib.scoring import Task, score
from flownlib.weights import Artifact, Layout
from flownlib.zoo import Zoo


class Encoder(Protocol):
    """Anything that turns weights [n, p] into latents [n, k] of about unit scale, and back."""

    latent_dim: int
    layout: Layout

    def encode(self, weights: Tensor) -> Tensor:
        """Latents [n, k]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Weights [n, p]."""

    def as_artifact(self) -> Artifact:
        """Everything that `from_artifact` of the same class needs."""


def check_layout(layout: Layout, zoo: Zoo) -> None:
    """Refuse networks that an encoder was not made for.

    Raises:
        ValueError: naming both layouts.
    """
    if layout != zoo.layout:
        raise ValueError(f"this encoder takes {described(layout)}, and the zoo holds {described(zoo.layout)}; fit one to it")


def described(layout: Layout) -> str:
    """For example "2,464 numbers (conv1.weight 8×1×5×5, …, fc2.bias 10)"."""
    ends = [(layout.names[i], "×".join(map(str, layout.shapes[i])) or "1") for i in (0, -1)]
    return f"{layout.size:,} numbers ({ends[0][0]} {ends[0][1]}, …, {ends[1][0]} {ends[1][1]})"


@dataclass(frozen=True)
class Standardiser:
    """Centres weights and divides each tensor of the layout by one scale, so that layers weigh alike."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, weights: Tensor, layout: Layout) -> Standardiser:
        """Mean [p] over networks and, per tensor, the root mean square of what is left [p]; refuses what is not finite."""
        check_real("networks", weights, (layout.size,))
        mean = weights.mean(0)
        scale = torch.empty_like(mean)
        for place in layout.slices().values():
            scale[place] = (weights[:, place] - mean[place]).square().mean().sqrt().clamp(min=1e-8)
        return cls(mean, scale)

    @classmethod
    def by_tensor(cls, weights: Tensor, layout: Layout) -> Standardiser:
        """One mean and one standard deviation for each tensor, so that hidden units are treated alike [p] each."""
        mean, scale = torch.empty_like(weights[0]), torch.empty_like(weights[0])
        for place in layout.slices().values():
            mean[place] = weights[:, place].mean()
            scale[place] = weights[:, place].std(correction=0).clamp(min=1e-8)
        return cls(mean, scale)

    def forward(self, weights: Tensor) -> Tensor:
        """Standardised weights, same shape; rows of another length would be broadcast, and are refused."""
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

    def encode(self, weights: Tensor) -> Tensor:
        """Standardised weights [n, p]."""
        return self.standardiser.forward(weights)

    def decode(self, latents: Tensor) -> Tensor:
        """Weights [n, p]."""
        return self.standardiser.inverse(latents)


@dataclass(frozen=True)
class Reconstruction:
    """decode(encode(w)) on some networks: share of weight variance explained, and accuracies [n] before and after."""

    r2: float
    accuracy_before: Tensor
    accuracy_after: Tensor


def reconstruct(encoder: Encoder, zoo: Zoo, tasks: Mapping[str, Task], baseline: Tensor | None = None) -> Reconstruction:
    """Measure an encoder on a zoo's networks, each on the test images of its own task.

    Args:
        baseline: the mean [p] that explains nothing, by default the zoo's own.

    Raises:
        ValueError: if the zoo has another layout than the encoder was fitted to.
    """
    check_layout(encoder.layout, zoo)
    with torch.no_grad():
        decoded = encoder.decode(encoder.encode(zoo.weights))
    mean = zoo.weights.mean(0) if baseline is None else baseline
    # R^2 = 1 - |w - w'|^2 / |w - mean|^2
    r2 = 1 - (zoo.weights - decoded).square().sum() / (zoo.weights - mean).square().sum()
    after = torch.empty(len(zoo))
    for name in zoo.tasks:
        rows = torch.tensor((zoo.table["task"] == name).to_numpy())
        after[rows] = score(zoo.model, decoded[rows], tasks[name].test.x, tasks[name].test.y).accuracy
    before = torch.tensor(zoo.table["test_accuracy"].to_numpy(), dtype=torch.float32)
    return Reconstruction(float(r2), before, after)


@dataclass(frozen=True)
class PCA:
    """Latents are the first k principal coordinates, scaled to unit variance on the training zoo."""

    layout: Layout
    standardiser: Standardiser
    components: Tensor  # [k, p], orthonormal rows
    deviations: Tensor  # [k]

    @classmethod
    def fit(cls, zoo: Zoo, latent_dim: int, whiten: bool = True) -> PCA:
        """At most n - 1 components exist for n networks.

        Args:
            whiten: give every coordinate unit variance; if False one scale for all, so that latents keep distances.

        Raises:
            ValueError: if more are asked for.
        """
        if not 1 <= latent_dim < len(zoo):
            most = (
                f"at most {len(zoo) - 1} principal components, not {latent_dim}" if len(zoo) > 1 else "no principal components"
            )
            raise ValueError(f"{len(zoo)} networks have {most}; ask for 1 or more, or train more networks")
        standardiser = Standardiser.fit(zoo.weights, zoo.layout)
        _, values, components = torch.linalg.svd(standardiser.forward(zoo.weights), full_matrices=False)
        # in rows, as it will be stored: another order in memory sums in another order
        components = components[:latent_dim].contiguous()
        deviations = values[:latent_dim] / (len(zoo) - 1) ** 0.5
        if not whiten:
            deviations = deviations.square().mean().sqrt().expand(latent_dim).contiguous()
        return cls(zoo.layout, standardiser, components, deviations)

    def as_artifact(self) -> Artifact:
        """Mean, scale, components, deviations and layout."""
        tensors = asdict(self.standardiser) | {"components": self.components, "deviations": self.deviations}
        return Artifact(tensors, {"encoder": "pca", "layout": self.layout.as_json()})

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> PCA:
        """The inverse of `as_artifact`."""
        mean, scale, components, deviations = (artifact.tensors[k] for k in ("mean", "scale", "components", "deviations"))
        return cls(Layout.from_json(artifact.meta["layout"]), Standardiser(mean, scale), components, deviations)

    @property
    def latent_dim(self) -> int:
        """k."""
        return len(self.components)

    def encode(self, weights: Tensor) -> Tensor:
        """Latents [n, k]."""
        return self.standardiser.forward(weights) @ self.components.T / self.deviations

    def decode(self, latents: Tensor) -> Tensor:
        """Weights [n, p]."""
        if latents.shape[-1] != self.latent_dim:  # a single column would be broadcast
            raise ValueError(f"this encoder decodes latents of {self.latent_dim} numbers, not {tuple(latents.shape)}")
        return self.standardiser.inverse(latents * self.deviations @ self.components)
