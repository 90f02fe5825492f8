"""A small frozen image encoder: trained once to tell many characters apart, then only looked through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.optimisation import minimise


class Backbone(nn.Module):
    """Three strided convolutions and a linear layer: images [b, 1, 28, 28] → features [b, dim].

    `features` centres by the training features' mean and scales each feature vector to length sqrt(dim), after which
    even the nearest centroid is a strong few-shot method (Wang et al. 2019, SimpleShot, "CL2N").
    """

    def __init__(self, dim: int = 64, channels: int = 16) -> None:
        super().__init__()
        self.dim = dim
        widths = (1, channels, 2 * channels, 4 * channels)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.convolutions = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * channels * 16, dim))
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Raw features [b, dim], for training."""
        return self.convolutions(x)

    @torch.no_grad()
    def features(self, x: Tensor, chunk: int = 1000) -> Tensor:
        """Features [..., dim] of images [..., 1, 28, 28]: centred, of length sqrt(dim), computed in evaluation mode."""
        was_training = self.training
        self.eval()
        raw = torch.cat([self(part) for part in x.flatten(0, -4).split(chunk)])
        self.train(was_training)
        return F.normalize(raw - self.mean, dim=-1).unflatten(0, x.shape[:-3]) * self.dim**0.5


def train_backbone(
    pool: Tensor, steps: int, seed: int, dim: int = 64, batch_size: int = 128, learning_rate: float = 3e-3
) -> Backbone:
    """A backbone trained by softmax over all classes of a pool of images [classes, k, 1, 28, 28]; its head is thrown away.

    Returns:
        The backbone, in evaluation mode, its parameters frozen.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone, head = Backbone(dim).to(pool.device), nn.Linear(dim, len(pool)).to(pool.device)
    images, per_class = pool.flatten(0, 1), pool.shape[1]

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (batch_size,), generator=generator).to(pool.device)
        return F.cross_entropy(head(backbone(images[chosen])), chosen // per_class)

    minimise(loss, nn.ModuleList([backbone, head]), steps, learning_rate, "backbone", weight_decay=1e-2)
    backbone.eval().requires_grad_(False)
    few = images[:: max(1, len(images) // 4000)]
    backbone.mean = torch.cat([backbone(part) for part in few.split(1000)]).mean(0)
    return backbone
