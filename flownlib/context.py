"""From a task's support images to a context y that a generator can be conditioned on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass
class PCAFeatures:
    """Frozen image features: the first `dim` principal coordinates of the pixels, scaled by the first one's deviation."""

    dim: int = 16
    mean: Tensor = field(default=None, repr=False)
    components: Tensor = field(default=None, repr=False)

    def fit(self, images: Tensor, most: int = 4000) -> Self:
        """Fit to images [n, c, h, w], of which at most `most`, evenly spaced, are used; returns itself."""
        pixels = images[:: max(1, len(images) // most)].flatten(1)
        self.mean = pixels.mean(0)
        _, values, axes = torch.linalg.svd(pixels - self.mean, full_matrices=False)
        self.components = axes[: self.dim] * (len(pixels) - 1) ** 0.5 / values[0]
        return self

    def features(self, x: Tensor) -> Tensor:
        """Features [n, dim] of images [n, c, h, w]."""
        return (x.flatten(1) - self.mean) @ self.components.T


def set_mean_context(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The simplest context: each class's mean feature, one after the other.

    The order of the support images does not matter; permuting the labels permutes the blocks of y.

    Args:
        features: [k, d]. labels: int64 [k], every class at least once.

    Returns:
        y [num_classes * d].

    Raises:
        ValueError: if a class has no support image.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if len(counts) > num_classes or (counts == 0).any():
        raise ValueError(f"a context needs support images of each of the {num_classes} classes, the counts are {counts.tolist()}")
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    return (sums.index_add(0, labels, features) / counts[:, None]).flatten()
