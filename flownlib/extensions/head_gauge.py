"""How a head is written as tokens, one a class, so that a flow can learn it.

Raw heads are badly scaled for learning: adding one vector to every row changes no decision, the bias depends on where
the features happen to lie, and rows and bias differ in size. The gauge fixes all three. It writes logits as
row · (f - m) + b with m the features' mean, subtracts the mean over classes (which softmax ignores), and divides by
one number for rows and one for biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadGauge:
    """The frame in which heads are written: `mean` [d] of the features, `scale` [d + 1] of rows and bias."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, rows: Tensor, bias: Tensor, features: Tensor) -> HeadGauge:
        """The gauge of trained heads.

        Args:
            rows: [h, n, d]. bias: [h, n]. features: [..., d], a sample of the head's inputs over all classes.

        Raises:
            ValueError: if the heads are all alike, which leaves nothing to scale by.
        """
        plain = cls(features.flatten(0, -2).mean(0), torch.ones(rows.shape[-1] + 1, dtype=rows.dtype, device=rows.device))
        tokens = plain.to_tokens(rows, bias)
        row_scale, bias_scale = tokens[..., :-1].square().mean().sqrt(), tokens[..., -1].square().mean().sqrt()
        if row_scale == 0 or bias_scale == 0:
            raise ValueError("the gauge needs trained heads whose classes differ, and these are all zero after centring")
        return cls(plain.mean, torch.cat([row_scale.expand(rows.shape[-1]), bias_scale[None]]))

    def to_tokens(self, rows: Tensor, bias: Tensor) -> Tensor:
        """Heads (rows [b, n, d], bias [b, n]) → tokens [b, n, d + 1], their mean over classes removed."""
        # row · f + bias = row · (f - m) + (bias + row · m)
        tokens = torch.cat([rows, (bias + rows @ self.mean)[..., None]], dim=-1)
        return (tokens - tokens.mean(dim=-2, keepdim=True)) / self.scale

    def from_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b, n, d + 1] → rows [b, n, d] and bias [b, n]; undoes `to_tokens` but for what softmax ignores."""
        tokens = tokens * self.scale
        rows = tokens[..., :-1]
        return rows, tokens[..., -1] - rows @ self.mean


def class_means(features: Tensor, classes: int) -> Tensor:
    """Mean feature of each class [b, n, d] from support features [b, n * k, d] sorted by class.

    Raises:
        ValueError: if the support cannot be divided evenly among the classes.
    """
    if features.shape[1] % classes:
        raise ValueError(f"a support sorted by class needs equally many images a class, not {features.shape[1]} for {classes}")
    return features.unflatten(1, (classes, -1)).mean(dim=2)


def centroid_head(means: Tensor, scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The linear head of the nearest-centroid rule (Snell et al. 2017): rows [b, n, d] and bias [b, n] from means [b, n, d]."""
    # -s |f - μ|^2 = 2 s μ · f - s |μ|^2 - s |f|^2, and the last term is the same for every class
    return 2 * scale * means, -scale * means.square().sum(dim=-1)


class CentroidPrior(nn.Module):
    """The centroid head in a gauge's tokens, with a learned scale for rows and one for biases: the flow's base.

    Args:
        scale: the temperature s at which the centroid head starts.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([scale, scale]).log())

    def forward(self, means: Tensor, gauge: HeadGauge) -> Tensor:
        """Tokens [b, n, d + 1] of the centroid head of class means [b, n, d]."""
        # distances do not change when the features' mean is moved to 0, and the numbers stay small
        rows, bias = centroid_head(means - gauge.mean)
        row_scale, bias_scale = self.log_scale.exp()
        tokens = torch.cat([row_scale * rows, bias_scale * bias[..., None]], dim=-1)
        return (tokens - tokens.mean(dim=-2, keepdim=True)) / gauge.scale

    @torch.no_grad()
    def fit(self, base: Tensor, tokens: Tensor) -> None:
        """Set both scales, in place, so that this prior's tokens [t, n, d + 1] are nearest to trained heads' tokens."""
        for i, part in enumerate((slice(None, -1), slice(-1, None))):
            ratio = (base[..., part] * tokens[..., part]).sum() / base[..., part].square().sum()
            self.log_scale[i] += ratio.clamp(min=1e-3).log()
