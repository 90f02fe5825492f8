"""Two habits of every training loop here: an averaged copy of the parameters, and a learning rate that comes down."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters with a warm-up, so that early weights are forgotten."""

    def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        return mean + (current - mean) * (1 - min(decay, (1 + float(updates)) / (10 + float(updates))))

    return AveragedModel(model, avg_fn=average)


def warmup_cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: a linear warm-up, then half a cosine down to 1 %."""
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
