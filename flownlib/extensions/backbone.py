"""Frozen image encoders: a small one, trained once to tell many characters apart, and torchvision's for natural images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from flownlib.optimisation import minimise, seeded_module


@dataclass
class PCAFeatures:
    """Frozen image features: the first `dim` principal coordinates of the pixels, scaled by the first one's deviation."""

    dim: int = 16
    mean: Tensor = field(default=None, repr=False)
    components: Tensor = field(default=None, repr=False)

    def fit(self, images: Tensor, most: int = 4000) -> Self:
        """Itself, fitted to images [n, c, h, w], of which at most `most`, evenly spaced, are used."""
        pixels = images[:: max(1, len(images) // most)].flatten(1)
        self.mean = pixels.mean(0)
        _, values, axes = torch.linalg.svd(pixels - self.mean, full_matrices=False)
        self.components = axes[: self.dim] * (len(pixels) - 1) ** 0.5 / values[0]
        return self

    def features(self, x: Tensor) -> Tensor:
        """Features [n, dim] of images [n, c, h, w]."""
        return (x.flatten(1) - self.mean) @ self.components.T


class Backbone(nn.Module):
    """Three strided convolutions and a linear layer: images [b, 1, 28, 28] → features [b, dim].

    `features` centres by the training features' mean and scales each feature vector to length sqrt(dim), after which
    even the nearest centroid is a strong few-shot method (Wang et al. 2019, SimpleShot, "CL2N").
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.dim = dim
        widths = (1, 16, 32, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.convolutions = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 16, dim))
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


def train_backbone(pool: Tensor, steps: int, seed: int, dim: int = 64, batch_size: int = 128) -> Backbone:
    """A backbone trained by softmax over all classes of a pool of images [classes, k, 1, 28, 28]; its head is thrown away.

    Returns:
        The backbone, in evaluation mode, its parameters frozen.
    """
    generator = torch.Generator().manual_seed(seed)
    model = seeded_module(seed, lambda: nn.Sequential(Backbone(dim), nn.Linear(dim, len(pool)))).to(pool.device)
    backbone = model[0]
    images, per_class = pool.flatten(0, 1), pool.shape[1]

    def loss() -> Tensor:
        rows = torch.randint(len(images), (batch_size,), generator=generator).to(pool.device)
        return F.cross_entropy(model(images[rows]), rows // per_class)

    minimise(loss, model, steps, 3e-3, "backbone", weight_decay=1e-2)
    backbone.eval().requires_grad_(False)
    few = images[:: max(1, len(images) // 4000)]
    backbone.mean = torch.cat([backbone(part) for part in few.split(1000)]).mean(0)
    return backbone


@dataclass(frozen=True)
class TorchvisionFeatures:
    """The first principal components of what the last layer of an ImageNet model sees."""

    model: nn.Module  # without its head: images [n, 3, 224, 224] → [n, d]
    components: PCAFeatures

    def features(self, x: Tensor) -> Tensor:
        """Features [n, dim] of standardised images [n, c, h, w] with one channel or three."""
        return self.components.features(penultimate(self.model, x))


@torch.no_grad()
def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """What a headless ImageNet model returns [n, d] for standardised images, enlarged to 224 × 224 pixels."""
    parts = x.expand(-1, 3, -1, -1).split(64)
    return torch.cat([model(F.interpolate(part, (224, 224), mode="bilinear", antialias=True)) for part in parts])


def torchvision_features(name: str, images: Tensor, dim: int) -> TorchvisionFeatures:
    """A torchvision model with its published weights, which are downloaded when they are first asked for.

    Args:
        images: [n, c, h, w], of which at most 1,000, evenly spaced, fit the principal components.

    Raises:
        ValueError: for a model that torchvision does not have, or if its weights cannot be had.
    """
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT")
    except OSError as error:  # urllib's errors are among them
        raise ValueError(f"the weights of {name} could not be downloaded ({error}); connect, or set context_model") from None
    head = [part for part, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(head, nn.Identity())
    model.eval().requires_grad_(False).to(images.device)
    return TorchvisionFeatures(model, PCAFeatures(dim).fit(penultimate(model, images[:: max(1, len(images) // 1000)])))
