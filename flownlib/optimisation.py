"""The training loop of the library, and its habits: averaged parameters, a learning rate that comes down, seeded streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    """Learning-rate factor in [0, 1] of one of `steps` >= 1: a linear warm-up, then half a cosine down to 1 %."""
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def minimise(
    loss: Callable[[], Tensor],
    model: nn.Module | Sequence[Tensor | dict],
    steps: int,
    learning_rate: float,
    name: str,
    weight_decay: float = 1e-3,
    clip: float = 1.0,
    constant: bool = False,
    after_step: Callable[[int], None] | None = None,
    progress: bool | None = None,
) -> list[float]:
    """The loss at every step of training parameters in place with AdamW, which without weight decay is Adam.

    Args:
        loss: draws a batch and returns its loss, a scalar.
        model: whose parameters are trained; or these parameters themselves, or groups of them as an optimiser takes.
        steps: at least 1.
        learning_rate: the highest, above 0.
        name: what the progress bar says.
        weight_decay: of AdamW, at least 0.
        clip: the largest norm of the gradient over all parameters; `math.inf` lets it be.
        constant: keep the learning rate as it is, in place of `warmup_cosine`.
        after_step: called with 1, …, steps.
        progress: show a bar; None shows it in a terminal.
    """
    check_count("the number of training steps", steps)
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    learners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if constant else warmup_cosine(step, steps))
    losses = []
    for step in tqdm(range(1, steps + 1), desc=name, leave=False, disable=None if progress is None else not progress):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(learners, clip)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if after_step:
            after_step(step)
    return losses


def seeded_module(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns with torch's own random numbers seeded for it; outside of it they go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on every one of the numbers."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 12_345) % (2**63 - 1)
    return torch.Generator().manual_seed(state)
