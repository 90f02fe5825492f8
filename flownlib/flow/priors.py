"""Priors: where a flow starts. Anything with `sample(n, generator)` will do; a density is needed for likelihoods only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flownlib.encoders import Encoder


class Prior(Protocol):
    """A distribution over starting points x_0."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, scale^2) in `dim` dimensions."""

    dim: int
    scale: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""
        return self.scale * torch.randn(n, self.dim, generator=generator, device=generator.device)

    def log_density(self, x: Tensor) -> Tensor:
        """In nats, [n] for points [n, k]."""
        # log N(x; 0, s^2) = -|x|^2 / (2 s^2) - k log(s sqrt(2 pi))
        return -x.square().sum(1) / (2 * self.scale**2) - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class FreshNetworks:
    """Latents of freshly initialised networks (Kaiming-uniform, as torch does it): where training itself starts.

    Args:
        model: the zoo's classifier, which has `initialise(n, generator)`. encoder: the flow's.
    """

    model: object
    encoder: Encoder

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""
        return self.encoder.encode(self.model.initialise(n, generator))
