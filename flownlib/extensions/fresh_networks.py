"""A prior over latents where training itself starts: freshly initialised networks, encoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.encoders import Encoder
from flownlib.networks import Model


@dataclass(frozen=True)
class FreshNetworks:
    """Latents of networks initialised as the zoo's were (Kaiming-uniform, as torch does it).

    Args:
        model: the zoo's classifier.
        encoder: the flow's.
        device: where the encoder is.
    """

    model: Model
    encoder: Encoder
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""
        return self.encoder.encode(self.model.initialise(n, generator).to(self.device))
