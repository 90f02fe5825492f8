"""The linear encoder: principal components of the standardised weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from flownlib.artifacts import Artifact
from flownlib.encoders.base import Standardiser
from flownlib.layout import Layout
from flownlib.zoo import Zoo


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
            raise ValueError(f"{len(zoo)} networks have at most {len(zoo) - 1} principal components, not {latent_dim}")
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
        return self.standardiser.inverse(latents * self.deviations @ self.components)
