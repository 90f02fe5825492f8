"""Principal components of a zoo's weights as an encoder: the best linear one for weights alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from flownlib.encoders import Standardiser
from flownlib.weights import Artifact, Float, Latents, Layout, Weights
from flownlib.zoo import Zoo


@dataclass(frozen=True)
class PCA:
    """Latents are the first k principal coordinates, scaled to unit variance on the training zoo."""

    layout: Layout
    standardiser: Standardiser
    components: Float[torch.Tensor, "k p"]  # orthonormal rows
    deviations: Float[torch.Tensor, " k"]

    @classmethod
    def fit(cls, zoo: Zoo, latent_dim: int, whiten: bool = True) -> PCA:
        """The first components of a zoo of n networks, which has at most n - 1.

        Args:
            zoo: n networks.
            latent_dim: k, from 1 to n - 1.
            whiten: give every coordinate unit variance; if False one scale for all, so that latents keep distances.

        Raises:
            ValueError: if there are fewer components.
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

    def encode(self, weights: Weights) -> Latents:
        """Latents [n, k]."""
        return self.standardiser.forward(weights) @ self.components.T / self.deviations

    def decode(self, latents: Latents) -> Weights:
        """Weights [n, p]."""
        if latents.shape[-1] != self.latent_dim:  # a single column would be broadcast
            raise ValueError(f"this encoder decodes latents of {self.latent_dim} numbers, not {tuple(latents.shape)}")
        return self.standardiser.inverse(latents * self.deviations @ self.components)
