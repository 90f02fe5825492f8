"""The training loop of the library, and its habits: averaged parameters, a learning rate that comes down, seeded streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from flownlib.weights import check_count


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters, with a warm-up so that early weights are forgotten.

    Args:
        model: as it is now; call `update_parameters(model)` after every step.
        decay: in [0, 1), reached after about 10 / (1 - decay) steps.
    """

    def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        return mean + (current - mean) * (1 - min(decay, (1 + float(updates)) / (10 + float(updates))))

    return AveragedModel(model, avg_fn=average)


def warmup_cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor in [0, 1]: a linear warm-up, then half a cosine down to 1 %.

    Raises:
        ValueError: for less than one step in all, which would pass off an untrained network as trained.
    """
    check_count("the number of training steps", steps)
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def minimise(
    loss: Callable[[], Tensor],
    model: nn.Module,
    steps: int,
    learning_rate: float,
    name: str,
    weight_decay: float = 1e-3,
    after_step: Callable[[int], None] | None = None,
    progress: bool | None = None,
) -> list[float]:
    """The loss at every step of training a model's parameters in place with AdamW and `warmup_cosine`.

    Gradient norms are at most 1.

    Args:
        loss: draws a batch and returns its loss, a scalar.
        model: whose parameters are trained.
        steps: at least 1.
        learning_rate: the highest, above 0.
        name: what the progress bar says.
        weight_decay: of AdamW, at least 0.
        after_step: called with 1, …, steps.
        progress: show a bar; None shows it in a terminal.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, steps=steps))
    losses = []
    for step in tqdm(range(1, steps + 1), desc=name, leave=False, disable=None if progress is None else not progress):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if after_step:
            after_step(step)
    return losses


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on every one of the numbers."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 12_345) % (2**63 - 1)
    return torch.Generator().manual_seed(state)
