"""CAML's reader of support sets: label vectors that mean nothing but "different", and a transformer over images with labels.

Source: Fifty et al. 2024, "Context-aware meta-learning".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    permutations = torch.rand(count, n, generator=generator).argsort(dim=1)
    return elmes(n)[permutations]


class SupportEncoder(nn.Module):
    """CAML's conditioner: a non-causal transformer over tokens [image feature, label vector] (Fifty et al. 2024).

    There are no positions, so the order of the images does not matter. A label vector is tied to a class only by the
    images that carry it.

    Args:
        dim: d of the image features.
        way: n, the length of a label vector.
        width: of the tokens, a multiple of `heads`.
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
            support: features [b, n * shot, d], sorted by class.
            labels: the classes' label vectors [b, n, n].

        Returns:
            [b, n, width], the mean over each class's images.
        """
        way = labels.shape[1]
        shot = support.shape[1] // way
        h = self.blocks(self.tokens(support, labels.repeat_interleave(shot, dim=1)))
        return h.unflatten(1, (way, shot)).mean(dim=2)


class CAMLContext(nn.Module):
    """Reads support sets c [m, n * shot * d], features sorted by class, into one vector a set [m, out].

    Label i of the task is output i of its classifiers, so here label vectors are not dealt at random: each class keeps its
    corner of the simplex, and exchanging two classes' images changes c. The order of the images within a class does not.

    Args:
        dim: d.
        way: n.
        out: width that the flow's velocity network takes.
    """

    def __init__(self, dim: int, way: int, out: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.dim, self.way = dim, way
        self.encoder = SupportEncoder(dim, way, width, depth)
        self.leave = nn.Linear(way * width, out)
        self.register_buffer("labels", elmes(way))

    def forward(self, c: Tensor) -> Tensor:
        """One vector a support set [m, out]."""
        support = c.unflatten(1, (-1, self.dim))
        return self.leave(self.encoder(support, self.labels.expand(len(c), -1, -1)).flatten(1))
