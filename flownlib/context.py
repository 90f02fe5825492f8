"""From a task's support images to a context y that a generator can be conditioned on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn


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
        raise ValueError(
            f"a context needs support images of each of the {num_classes} classes, the counts are {counts.tolist()}"
        )
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    return (sums.index_add(0, labels, features) / counts[:, None]).flatten()


def elmes(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The equal-length, maximally equiangular set of n label vectors [n, n] (Fifty et al. 2024, CAML, section 3).

    The corners of a simplex: rows of length 1, any two with inner product -1 / (n - 1), so that no two labels are
    closer than any other two and a label means nothing but "different from the rest".

    Raises:
        ValueError: for fewer than two labels.
    """
    if n < 2:
        raise ValueError(f"label embeddings need at least two classes, not {n}")
    # E = sqrt(n / (n - 1)) (I - 1 1^T / n)
    return (n / (n - 1)) ** 0.5 * (torch.eye(n, dtype=dtype) - 1 / n)


def random_labels(count: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """ELMES label vectors [count, n, n], dealt to the classes of each of `count` episodes at random."""
    deal = torch.rand(count, n, generator=generator).argsort(dim=1)
    return elmes(n)[deal]


class SupportEncoder(nn.Module):
    """CAML's conditioner: a non-causal transformer over tokens [image feature, label vector] (Fifty et al. 2024).

    There are no positions, so the order of the images does not matter. A label vector is tied to a class only by the
    images that carry it.

    Args:
        dim: d of the image features. way: n, the length of a label vector. width: of the tokens, a multiple of heads.
    """

    def __init__(self, dim: int, way: int, width: int = 96, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(dim + way, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def tokens(self, features: Tensor, labels: Tensor) -> Tensor:
        """Tokens [b, k, width] from features [b, k, d] of root mean square 1 and one label vector an image [b, k, n]."""
        # label vectors are short; this makes an entry as large as a feature's
        return self.enter(torch.cat([features, labels * labels.shape[-1] ** 0.5], dim=-1))

    def forward(self, support: Tensor, labels: Tensor) -> Tensor:
        """One context a class.

        Args:
            support: features [b, n * shot, d], sorted by class. labels: the classes' label vectors [b, n, n].

        Returns:
            [b, n, width], the mean over each class's images.
        """
        way = labels.shape[1]
        shot = support.shape[1] // way
        h = self.blocks(self.tokens(support, labels.repeat_interleave(shot, dim=1)))
        return h.unflatten(1, (way, shot)).mean(dim=2)


class CAMLContext(nn.Module):
    """Reads support sets y [m, n * shot * d], features sorted by class, into one vector a set [m, out].

    Label i of the task is output i of its classifiers, so here label vectors are not dealt at random: each class keeps its
    corner of the simplex, and exchanging two classes' images changes y. The order of the images within a class does not.

    Args:
        dim: d. way: n. out: what the flow's velocity network takes.
    """

    def __init__(self, dim: int, way: int, out: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.dim, self.way = dim, way
        self.encoder = SupportEncoder(dim, way, width, depth)
        self.leave = nn.Linear(way * width, out)
        self.register_buffer("labels", elmes(way))

    def forward(self, y: Tensor) -> Tensor:
        """One vector a support set [m, out]."""
        support = y.unflatten(1, (-1, self.dim))
        return self.leave(self.encoder(support, self.labels.expand(len(y), -1, -1)).flatten(1))
