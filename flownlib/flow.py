"""Probability paths: how a point of noise x_0 becomes a point of data x_1, and what a network may predict along the way.

Every path here mixes its ends, x_t = alpha(t) x_1 + beta(t) x_0 (+ sigma eps), so that end points, noise and velocity are
one another's linear functions at a given x_t. Shapes: x [n, ...], t [n] in [0, 1].
Sources: Lipman et al. 2023, "Flow matching for generative modeling"; Albergo & Vanden-Eijnden 2023, "Building normalizing
flows with stochastic interpolants"; Tong et al. 2024, "Improving and generalizing flow-based generative models".
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from flownlib.checks import check_count
from flownlib.optimisation import moving_average, warmup_cosine

PREDICTIONS = ("velocity", "x_1", "noise")
SMALLEST = 0.02  # alpha and beta are kept this far from 0 where they divide


@dataclass(frozen=True)
class PathSample:
    """A point on the path and the velocity there. All [n, ...] but t [n]."""

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    x_t: Tensor
    dx_t: Tensor

    def target(self, predicts: str) -> Tensor:
        """What a network of this kind of `PREDICTIONS` is asked for."""
        return {"velocity": self.dx_t, "x_1": self.x_1, "noise": self.x_0}[predicts]


@dataclass(frozen=True)
class Coefficients:
    """alpha(t), beta(t) and their derivatives in t, each broadcast to the points' shape."""

    alpha: Tensor
    beta: Tensor
    d_alpha: Tensor
    d_beta: Tensor


@dataclass(frozen=True)
class StraightPath:
    """Tubes of width sigma about straight lines from x_0 to x_1 (Tong et al. 2024, section 3.2): alpha = t, beta = 1 - t."""

    sigma: float = 0.0

    def schedule(self, t: Tensor) -> Coefficients:
        """alpha, beta and their derivatives at times t."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def at(self, t: Tensor, x: Tensor) -> Coefficients:
        """The schedule at t [n], shaped to multiply points like x [n, ...]."""
        return self.schedule(t.reshape(-1, *[1] * (x.dim() - 1)))

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """The point x_t and the conditional velocity dx_t at times t."""
        c = self.at(t, x_1)
        # x_t = alpha x_1 + beta x_0 + sigma * eps
        x_t = c.alpha * x_1 + c.beta * x_0
        if self.sigma:
            x_t = x_t + self.sigma * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)
        # u_t(x | x_0, x_1) = alpha' x_1 + beta' x_0
        return PathSample(x_0, x_1, t, x_t, c.d_alpha * x_1 + c.d_beta * x_0)

    def ends(self, x_t: Tensor, t: Tensor, predicted: Tensor, predicts: str) -> tuple[Tensor, Tensor]:
        """(x_0, x_1) of the point x_t on a path without noise, from any one of `PREDICTIONS`.

        Exact wherever the coefficient that divides is above SMALLEST: beta for x_1, alpha for noise, none for a velocity.
        """
        c = self.at(t, x_t)
        if predicts == "x_1":
            return (x_t - c.alpha * predicted) / c.beta.clamp(min=SMALLEST), predicted
        if predicts == "noise":
            return predicted, (x_t - c.beta * predicted) / c.alpha.clamp(min=SMALLEST)
        # two equations, x_t = alpha x_1 + beta x_0 and v = alpha' x_1 + beta' x_0, by Cramer's rule
        determinant = c.alpha * c.d_beta - c.beta * c.d_alpha
        x_0 = (c.alpha * predicted - c.d_alpha * x_t) / determinant
        return x_0, (c.d_beta * x_t - c.beta * predicted) / determinant

    def convert(self, x_t: Tensor, t: Tensor, predicted: Tensor, predicts: str, wanted: str) -> Tensor:
        """One of `PREDICTIONS` from another.

        Raises:
            ValueError: for a name that is not among them.
        """
        if not {predicts, wanted} <= set(PREDICTIONS):
            raise ValueError(f"a network predicts one of {', '.join(PREDICTIONS)}, not {predicts!r} or {wanted!r}")
        if predicts == wanted:
            return predicted
        x_0, x_1 = self.ends(x_t, t, predicted, predicts)
        if wanted == "velocity":
            c = self.at(t, x_t)
            return c.d_alpha * x_1 + c.d_beta * x_0
        return x_1 if wanted == "x_1" else x_0


@dataclass(frozen=True)
class ShrinkingPath(StraightPath):
    """Gaussians that move to x_1 and shrink to width sigma there (Lipman et al. 2023, equations 20 to 23)."""

    def schedule(self, t: Tensor) -> Coefficients:
        """alpha = t, beta = 1 - (1 - sigma) t."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - (1 - self.sigma) * t, one, -(1 - self.sigma) * one)

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """As for the straight path, without noise of its own: x_0 is the noise."""
        c = self.at(t, x_1)
        # psi_t(x_0) = (1 - (1 - sigma) t) x_0 + t x_1, and its derivative x_1 - (1 - sigma) x_0
        return PathSample(x_0, x_1, t, c.alpha * x_1 + c.beta * x_0, c.d_alpha * x_1 + c.d_beta * x_0)


@dataclass(frozen=True)
class VariancePreservingPath(StraightPath):
    """A quarter turn from x_0 to x_1 (Albergo & Vanden-Eijnden 2023): unit variance at both ends is kept in between."""

    def schedule(self, t: Tensor) -> Coefficients:
        """alpha = sin(pi t / 2), beta = cos(pi t / 2)."""
        angle, speed = math.pi / 2 * t, math.pi / 2
        return Coefficients(angle.sin(), angle.cos(), speed * angle.cos(), -speed * angle.sin())


PATHS = {"straight": StraightPath, "shrinking": ShrinkingPath, "variance_preserving": VariancePreservingPath}


def velocity_from_x_1(x_1: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The straight path's velocity towards a predicted end point; 1 - t is kept away from 0."""
    remaining = (1 - t).clamp(min=SMALLEST).reshape(-1, *[1] * (x.dim() - 1))
    # v = (x_1 - x) / (1 - t)
    return (x_1 - x) / remaining


class Prior(Protocol):
    """A distribution over starting points x_0."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, scale^2) in `dim` dimensions."""

    dim: int
    scale: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""
        return self.scale * torch.randn(n, self.dim, generator=generator, device=generator.device)

    def log_density(self, x: Tensor) -> Tensor:
        """In nats, [n] for points [n, k]."""
        # log N(x; 0, s^2) = -|x|^2 / (2 s^2) - k log(s sqrt(2 pi))
        return -x.square().sum(1) / (2 * self.scale**2) - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))


class TimeFeatures(nn.Module):
    """Sines and cosines of t at frequencies spread evenly in log space: [n] → [n, 2 * count]."""

    def __init__(self, count: int = 16, highest: float = 60.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(highest), count)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class VelocityNetwork(nn.Module, ABC):
    """What every velocity network shares: time and context embedded in one vector, and a velocity from what is predicted.

    Args:
        width: of the embedding. context: y [n, c] → [n, width]; None for an unconditional flow. predicts: what the network
            itself outputs, one of PREDICTIONS; the module returns a velocity either way. path: along which it is trained.

    Raises:
        ValueError: for an unknown prediction.
    """

    def __init__(self, width: int, context: nn.Module | None, predicts: str, path: StraightPath | None) -> None:
        super().__init__()
        if predicts not in PREDICTIONS:
            raise ValueError(f"a velocity network predicts {', '.join(map(repr, PREDICTIONS))}, not {predicts!r}")
        self.predicts, self.path = predicts, path or StraightPath()
        self.time = nn.Sequential(TimeFeatures(), nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.context = context
        self.no_context = nn.Parameter(torch.zeros(width))

    def embed(self, t: Tensor, y: Tensor | None, keep: Tensor | None) -> Tensor:
        """Time and context as one vector [n, width]; `keep` bool [n] is False where the context is dropped."""
        embedding = self.no_context.expand(len(t), -1) if y is None or self.context is None else self.context(y)
        if keep is not None:
            embedding = torch.where(keep[:, None], embedding, self.no_context)
        return F.silu(self.time(t) + embedding)

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `keep` bool [n] is False where the context is dropped."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The velocity [n, d]; y=None asks for the unconditional field."""
        return self.path.convert(x, t, self.predict(x, t, y), self.predicts, "velocity")


def context_perceptron(context_dim: int, width: int) -> nn.Module | None:
    """The simplest reader of a context, or None where there is none to read."""
    return nn.Sequential(nn.Linear(context_dim, width), nn.SiLU(), nn.Linear(width, width)) if context_dim else None


class VelocityMLP(VelocityNetwork):
    """A residual MLP whose blocks are scaled and shifted (FiLM) by the embedding of t and y.

    Args:
        dim: d. context_dim: c, 0 for an unconditional flow. context: in place of a perceptron, e.g. a CAML-style transformer.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        width: int = 256,
        depth: int = 3,
        predicts: str = "velocity",
        path: StraightPath | None = None,
        context: nn.Module | None = None,
    ) -> None:
        super().__init__(width, context or context_perceptron(context_dim, width), predicts, path)
        self.enter = nn.Linear(dim, width)
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
        embedding = self.embed(t, y, keep)
        h = self.enter(x)
        for block, norm, film in zip(self.blocks, self.norms, self.films, strict=True):
            scale, shift = film(embedding).chunk(2, dim=-1)
            h = h + block(norm(h) * (1 + scale) + shift)
        return self.leave(h)


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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "look_every"):
            check_count(f"{name} of a flow's training", getattr(self, name))


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
