"""The flow-matching loss and the loop that minimises it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from flownlib.flow.paths import PathSample, StraightPath
from flownlib.optimisation import moving_average, warmup_cosine

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]


def flow_matching_loss(model: nn.Module, sample: PathSample, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """The conditional flow-matching loss over a batch, a scalar (Lipman et al. 2023, equation 14)."""
    # L = E || v(x_t, t; y) - u_t(x_t | x_0, x_1) ||^2, or the same regression on x_1 or x_0 for a network that predicts it
    return (model.predict(sample.x_t, sample.t, y, keep) - sample.target(model.predicts)).square().mean()


@dataclass(frozen=True)
class FlowTraining:
    """How a velocity network is trained; `context_dropout` is the share of contexts hidden for guidance.

    Every `look_every` steps the dispersion of the samples is measured, if the caller can measure one.
    """

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    context_dropout: float = 0.15
    look_every: int = 200


class CollapseWarning(UserWarning):
    """A flow's samples lie much closer together than the data they were trained on."""


@dataclass
class FlowLog:
    """What was seen during training: the loss at every step, and (step, dispersion of samples over that of the data)."""

    losses: list[float] = field(default_factory=list)
    dispersions: list[tuple[int, float]] = field(default_factory=list)

    def warn_of_collapse(self, least: float = 0.5) -> None:
        """A falling loss can hide that all samples become one."""
        if self.dispersions and self.dispersions[-1][1] < least:
            warnings.warn(
                f"the samples' dispersion is {self.dispersions[-1][1]:.2f} of the data's; "
                "train for fewer steps, or on more networks, if you want them to differ",
                CollapseWarning,
                stacklevel=3,
            )


def train_flow(
    model: nn.Module,
    draw: Draw,
    training: FlowTraining,
    generator: torch.Generator,
    path: StraightPath | None = None,
    progress: bool = True,
    dispersion: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, FlowLog]:
    """Minimise the conditional flow-matching loss.

    Args:
        draw: (batch size, generator) → x_0, x_1, y of one batch. dispersion: of samples of a velocity network, over the
            data's; it must not use `generator`, so that looking changes nothing.

    Returns:
        The moving average of the trained network, and what was seen on the way. Warns of a collapse.
    """
    path = path or getattr(model, "path", StraightPath())
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, steps=training.steps))
    average, log = moving_average(model, training.ema), FlowLog()
    for step in tqdm(range(1, training.steps + 1), desc="flow", disable=not progress):
        x_0, x_1, y = draw(training.batch_size, generator)
        uniform = torch.rand(2, len(x_1), generator=generator, device=x_1.device, dtype=x_1.dtype)
        keep = None if y is None else uniform[1] >= training.context_dropout
        loss = flow_matching_loss(model, path.sample(x_0, x_1, uniform[0], generator), y, keep)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        log.losses.append(loss.item())
        if dispersion and step % training.look_every == 0:
            log.dispersions.append((step, dispersion(average.module)))
    log.warn_of_collapse()
    return average.module.eval(), log
