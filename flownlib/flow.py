"""Conditional flow matching: a path from a prior to the data, a velocity that follows it, an ODE that uses it.

Shapes throughout: points x [n, d], times t [n] in [0, 1] (0 = prior, 1 = data), contexts y [n, c].
Sources: Lipman et al. 2023, "Flow matching for generative modeling"; Tong et al. 2024, "Improving and
generalizing flow-based generative models with minibatch optimal transport".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchdiffeq import odeint
from tqdm.auto import tqdm

from flownlib.optimisation import moving_average, warmup_cosine

FIXED_STEP_SOLVERS = ("euler", "midpoint", "rk4")
SOLVERS = (*FIXED_STEP_SOLVERS, "dopri5")
Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class PathSample:
    """A point on the path and the velocity there. All [n, d] but t [n]."""

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    x_t: Tensor
    dx_t: Tensor


@dataclass(frozen=True)
class StraightPath:
    """Gaussian tubes of width sigma about straight lines from x_0 to x_1 (Tong et al. 2024, section 3.2)."""

    sigma: float = 0.0

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """The point x_t and the conditional velocity dx_t at times t."""
        time = t.reshape(-1, *[1] * (x_1.dim() - 1))
        # x_t = (1 - t) x_0 + t x_1 + sigma * eps
        x_t = (1 - time) * x_0 + time * x_1
        if self.sigma:
            x_t = x_t + self.sigma * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)
        # u_t(x | x_0, x_1) = x_1 - x_0
        return PathSample(x_0, x_1, t, x_t, x_1 - x_0)


def optimal_coupling(x_0: Tensor, x_1: Tensor, groups: Tensor | None = None) -> Tensor:
    """Which row of x_0 goes to each row of x_1 so that the summed squared distance is least (minibatch OT).

    Args:
        groups: int [n]; if given, pairs are only exchanged within a group (e.g. a task), which leaves the prior
            independent of the context. Coupling across contexts does not, and harms a conditional flow.

    Returns:
        int64 [n], to be used as x_0[index].
    """
    cost = torch.cdist(x_1.flatten(1), x_0.flatten(1)).square()
    if groups is not None:
        cost = cost + (groups[:, None] != groups[None]) * (cost.max() + 1) * len(cost)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    index = torch.empty(len(x_1), dtype=torch.int64)
    index[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return index.to(x_1.device)


class TimeFeatures(nn.Module):
    """Sines and cosines of t at frequencies spread evenly in log space: [n] → [n, 2 * count]."""

    def __init__(self, count: int = 16, highest: float = 60.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(highest), count)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class VelocityMLP(nn.Module):
    """v(x, t; y): a residual MLP whose blocks are scaled and shifted (FiLM) by an embedding of t and y.

    Args:
        dim: d. context_dim: c, 0 for an unconditional flow. predicts: what the network itself outputs, "velocity"
            or "x_1"; the module returns a velocity either way.
    """

    def __init__(self, dim: int, context_dim: int = 0, width: int = 256, depth: int = 3, predicts: str = "velocity") -> None:
        super().__init__()
        if predicts not in ("velocity", "x_1"):
            raise ValueError(f"a velocity network predicts 'velocity' or 'x_1', not {predicts!r}")
        self.predicts, self.context_dim = predicts, context_dim
        self.enter = nn.Linear(dim, width)
        self.time = nn.Sequential(TimeFeatures(), nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.context = nn.Sequential(nn.Linear(max(context_dim, 1), width), nn.SiLU(), nn.Linear(width, width))
        self.no_context = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `keep` bool [n] is False where the context is dropped."""
        embedding = self.no_context.expand(len(x), -1) if y is None else self.context(y)
        if keep is not None:
            embedding = torch.where(keep[:, None], embedding, self.no_context)
        embedding = F.silu(self.time(t) + embedding)
        h = self.enter(x)
        for block, norm, film in zip(self.blocks, self.norms, self.films, strict=True):
            scale, shift = film(embedding).chunk(2, dim=-1)
            h = h + block(norm(h) * (1 + scale) + shift)
        return self.leave(h)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The velocity [n, d]; y=None asks for the unconditional field."""
        output = self.predict(x, t, y)
        return velocity_from_x_1(output, x, t) if self.predicts == "x_1" else output


def velocity_from_x_1(x_1: Tensor, x: Tensor, t: Tensor, smallest: float = 0.02) -> Tensor:
    """The straight path's velocity towards a predicted end point; 1 - t is kept away from 0."""
    remaining = (1 - t).clamp(min=smallest).reshape(-1, *[1] * (x.dim() - 1))
    # v = (x_1 - x) / (1 - t)
    return (x_1 - x) / remaining


def flow_matching_loss(model: nn.Module, sample: PathSample, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """The conditional flow-matching loss over a batch, a scalar (Lipman et al. 2023, equation 14)."""
    # L = E || v(x_t, t; y) - u_t(x_t | x_0, x_1) ||^2, or the same regression on x_1 for a network that predicts it
    target = sample.x_1 if model.predicts == "x_1" else sample.dx_t
    return (model.predict(sample.x_t, sample.t, y, keep) - target).square().mean()


def guided(velocity: Velocity, weight: float = 1.0) -> Velocity:
    """Classifier-free guidance (Ho & Salimans 2022); weight 1 is the conditional field, 0 the unconditional one."""
    if weight == 1.0:
        return velocity

    def field(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        # v_w = v(x, t; none) + w (v(x, t; y) - v(x, t; none))
        free = velocity(x, t, None)
        return free + weight * (velocity(x, t, y) - free)

    return field


@dataclass(frozen=True)
class Trajectory:
    """Solutions of dx/dt = v(x, t; y): times [s], points [s, n, d], and how often the velocity was evaluated."""

    t: Tensor
    x: Tensor
    evaluations: int

    @property
    def x_1(self) -> Tensor:
        """The end points [n, d]."""
        return self.x[-1]


def integrate(velocity: Velocity, x_0: Tensor, y: Tensor | None = None, method: str = "euler", steps: int = 20) -> Trajectory:
    """Carry x_0 from t = 0 to 1. `steps` are the solver's steps, or for dopri5 the number of points reported.

    Raises:
        ValueError: for an unknown solver or fewer than one step.
    """
    if method not in SOLVERS or steps < 1:
        raise ValueError(f"choose a solver among {', '.join(SOLVERS)} and at least one step, not {method!r} with {steps}")
    calls = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return velocity(x, t.expand(len(x)), y)

    times = torch.linspace(0, 1, steps + 1, dtype=x_0.dtype, device=x_0.device)
    tolerances = {} if method in FIXED_STEP_SOLVERS else {"rtol": 1e-4, "atol": 1e-4}
    return Trajectory(times, odeint(field, x_0, times, method=method, **tolerances), calls)


@dataclass(frozen=True)
class FlowTraining:
    """How a velocity network is trained; `context_dropout` is the share of contexts hidden for guidance."""

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    context_dropout: float = 0.15


def train_flow(
    model: nn.Module,
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor | None]],
    training: FlowTraining,
    generator: torch.Generator,
    path: StraightPath | None = None,
    progress: bool = True,
) -> tuple[nn.Module, list[float]]:
    """Minimise the conditional flow-matching loss.

    Args:
        draw: (batch size, generator) → x_0, x_1, y of one batch.

    Returns:
        The moving average of the trained network, and the loss at every step.
    """
    path = path or StraightPath()
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, steps=training.steps))
    average, losses = moving_average(model, training.ema), []
    for _ in tqdm(range(training.steps), desc="flow", disable=not progress):
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
        losses.append(loss.item())
    return average.module.eval(), losses
