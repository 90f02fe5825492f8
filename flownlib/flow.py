"""Flow matching: probability paths from noise x_0 to data x_1, the velocity network, its loss, and the ODE dx/dt = v(x, t, c).

Every path here mixes its ends, x_t = alpha(t) x_1 + beta(t) x_0 (+ sigma eps), so that end points, noise and velocity are
one another's linear functions at a given x_t. Shapes: x [n, ...], t [n] in [0, 1], conditions c [n, ...].
Sources: Lipman et al. 2023, "Flow matching for generative modeling"; Albergo & Vanden-Eijnden 2023, "Building normalizing
flows with stochastic interpolants"; Tong et al. 2024, "Improving and generalizing flow-based generative models".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchdiffeq import odeint

from flownlib.weights import Bool, Float, Latents, check_count, drawn

PREDICTIONS = ("velocity", "x_1", "noise")
SOLVERS = ("euler", "midpoint", "rk4", "dopri5")
SMALLEST = 0.02  # alpha and beta are kept this far from 0 where they divide
Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x [n, d], t [n], c) → [n, d]


@dataclass(frozen=True)
class PathSample:
    """A point x_t on the path and the velocity dx_t there. All [n, ...] but t [n]."""

    x_0: Float[Tensor, " n *d"]
    x_1: Float[Tensor, " n *d"]
    t: Float[Tensor, " n"]
    x_t: Float[Tensor, " n *d"]
    dx_t: Float[Tensor, " n *d"]

    def target(self, predicts: str) -> Tensor:
        """What a network of this kind of `PREDICTIONS` is asked for, [n, ...]."""
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
    """Tubes of width sigma >= 0 about straight lines from x_0 to x_1 (Tong et al. 2024, section 3.2)."""

    sigma: float = 0.0

    def schedule(self, t: Tensor) -> Coefficients:
        """Coefficients alpha = t, beta = 1 - t, of t's shape."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def at(self, t: Float[Tensor, " n"], x: Float[Tensor, " n *d"]) -> Coefficients:
        """The schedule at t [n], shaped to multiply points like x [n, ...]."""
        return self.schedule(t.reshape(-1, *[1] * (x.dim() - 1)))

    def sample(
        self,
        x_0: Float[Tensor, " n *d"],
        x_1: Float[Tensor, " n *d"],
        t: Float[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """The points x_t [n, ...] and the conditional velocities dx_t there; the generator is asked only if sigma > 0."""
        at_t = self.at(t, x_1)
        # x_t = alpha x_1 + beta x_0 + sigma * eps
        x_t = at_t.alpha * x_1 + at_t.beta * x_0
        if self.sigma:
            x_t = x_t + self.sigma * drawn(torch.randn, x_t.shape, generator, x_t)
        # u_t(x | x_0, x_1) = alpha' x_1 + beta' x_0
        return PathSample(x_0, x_1, t, x_t, at_t.d_alpha * x_1 + at_t.d_beta * x_0)

    def ends(self, x_t: Tensor, t: Tensor, predicted: Tensor, predicts: str) -> tuple[Tensor, Tensor]:
        """(x_0, x_1), each [n, ...], of the point x_t on a path without noise, from any one of `PREDICTIONS`.

        Exact wherever the coefficient that divides is above SMALLEST: beta for x_1, alpha for noise, none for a velocity.
        """
        at_t = self.at(t, x_t)
        if predicts == "x_1":
            return (x_t - at_t.alpha * predicted) / at_t.beta.clamp(min=SMALLEST), predicted
        if predicts == "noise":
            return predicted, (x_t - at_t.beta * predicted) / at_t.alpha.clamp(min=SMALLEST)
        # two equations, x_t = alpha x_1 + beta x_0 and v = alpha' x_1 + beta' x_0, by Cramer's rule
        determinant = at_t.alpha * at_t.d_beta - at_t.beta * at_t.d_alpha
        x_0 = (at_t.alpha * predicted - at_t.d_alpha * x_t) / determinant
        return x_0, (at_t.d_beta * x_t - at_t.beta * predicted) / determinant

    def convert(self, x_t: Tensor, t: Tensor, predicted: Tensor, predicts: str, wanted: str) -> Tensor:
        """The `wanted` one of `PREDICTIONS` [n, ...] from the one `predicted`.

        Raises:
            ValueError: for a name that is not among them.
        """
        if not {predicts, wanted} <= set(PREDICTIONS):
            raise ValueError(f"a network predicts one of {', '.join(PREDICTIONS)}, not {predicts!r} or {wanted!r}")
        if predicts == wanted:
            return predicted
        x_0, x_1 = self.ends(x_t, t, predicted, predicts)
        if wanted == "velocity":
            at_t = self.at(t, x_t)
            return at_t.d_alpha * x_1 + at_t.d_beta * x_0
        return x_1 if wanted == "x_1" else x_0


@dataclass(frozen=True)
class VariancePreservingPath(StraightPath):
    """A quarter turn from x_0 to x_1 (Albergo & Vanden-Eijnden 2023): unit variance at both ends is kept in between."""

    def schedule(self, t: Tensor) -> Coefficients:
        """Coefficients alpha = sin(pi t / 2), beta = cos(pi t / 2), of t's shape."""
        angle, speed = math.pi / 2 * t, math.pi / 2
        return Coefficients(angle.sin(), angle.cos(), speed * angle.cos(), -speed * angle.sin())


PATHS = {"straight": StraightPath, "variance_preserving": VariancePreservingPath}


class Prior(Protocol):
    """A distribution over starting points x_0."""

    def sample(self, n: int, generator: torch.Generator) -> Latents:
        """n points [n, k]."""


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, scale^2) in `dim` dimensions; scale > 0."""

    dim: int
    scale: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> Latents:
        """n points [n, k]."""
        return self.scale * torch.randn(n, self.dim, generator=generator, device=generator.device)

    def log_density(self, x: Latents) -> Float[Tensor, " n"]:
        """Log-densities [n] in nats of points [n, k]."""
        # log N(x; 0, s^2) = -|x|^2 / (2 s^2) - k log(s sqrt(2 pi))
        return -x.square().sum(1) / (2 * self.scale**2) - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))


class TimeFeatures(nn.Module):
    """Sines and cosines of t at frequencies spread evenly in log space, 1 to `highest` radians: [n] → [n, 2 * count]."""

    frequencies: Tensor

    def __init__(self, count: int = 16, highest: float = 60.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(highest), count)))

    def forward(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n f"]:
        """Features [n, 2 * count] of times t [n]."""
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class VelocityNetwork(nn.Module, ABC):
    """What every velocity network shares: time and condition embedded in one vector, and a velocity from what is predicted.

    Args:
        width: of the embedding.
        context_dim: length of a condition, 0 for an unconditional flow.
        context: reads conditions c [n, ...] into [n, width], in place of a perceptron.
        predicts: what the network itself outputs, one of PREDICTIONS; the module returns a velocity either way.
        path: along which it is trained; straight if None.

    Raises:
        ValueError: for an unknown prediction.
    """

    def __init__(
        self, width: int, context_dim: int, context: nn.Module | None, predicts: str, path: StraightPath | None
    ) -> None:
        super().__init__()
        if predicts not in PREDICTIONS:
            raise ValueError(f"a velocity network predicts {', '.join(map(repr, PREDICTIONS))}, not {predicts!r}")
        self.predicts, self.path = predicts, path or StraightPath()
        if context is None and context_dim:
            context = nn.Sequential(nn.Linear(context_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.time = nn.Sequential(TimeFeatures(), nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.context = context
        self.no_context = nn.Parameter(torch.zeros(width))

    def embed(self, t: Float[Tensor, " n"], c: Tensor | None, condition_mask: Tensor | None) -> Float[Tensor, "n width"]:
        """Time and condition as one vector [n, width]; `condition_mask` bool [n] is False where the condition is dropped."""
        embedding = self.no_context.expand(len(t), -1) if c is None or self.context is None else self.context(c)
        if condition_mask is not None:
            embedding = torch.where(condition_mask[:, None], embedding, self.no_context)
        return F.silu(self.time(t) + embedding)

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, c: Tensor | None, condition_mask: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `condition_mask` bool [n] is False where the condition is dropped."""

    def forward(self, x: Float[Tensor, "n d"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n d"]:
        """The velocity [n, d]; c=None asks for the unconditional field."""
        return self.path.convert(x, t, self.predict(x, t, c), self.predicts, "velocity")


class VelocityMLP(VelocityNetwork):
    """A residual MLP whose blocks are scaled and shifted by the embedding of t and c (FiLM, Perez et al. 2018).

    Args:
        dim: d of the points.
        context_dim: length of a condition, 0 for an unconditional flow.
        width: of the hidden layers and the embedding.
        depth: number of residual blocks.
        predicts: one of PREDICTIONS.
        path: as in `VelocityNetwork`.
        context: reads the condition in place of a perceptron, e.g. a CAML-style transformer.
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
        super().__init__(width, context_dim, context, predicts, path)
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def predict(self, x: Tensor, t: Tensor, c: Tensor | None, condition_mask: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `condition_mask` bool [n] is False where the condition is dropped."""
        embedding = self.embed(t, c, condition_mask)
        h = self.enter(x)
        for block, norm, film in zip(self.blocks, self.norms, self.films, strict=True):
            scale, shift = film(embedding).chunk(2, dim=-1)
            h = h + block(norm(h) * (1 + scale) + shift)
        return self.leave(h)


def flow_matching_loss(
    model: VelocityNetwork, sample: PathSample, c: Tensor | None = None, condition_mask: Bool[Tensor, " n"] | None = None
) -> Float[Tensor, ""]:
    """The conditional flow-matching loss over a batch, a scalar (Lipman et al. 2023, equation 14)."""
    # L = E || v(x_t, t, c) - u_t(x_t | x_0, x_1) ||^2, or the same regression on x_1 or x_0 for a network that predicts it
    predicted = model.predict(sample.x_t, sample.t, c, condition_mask)
    return (predicted - sample.target(model.predicts)).square().mean()


def guided(velocity: Velocity, weight: float = 1.0) -> Velocity:
    """The velocity with classifier-free guidance (Ho & Salimans 2022); weight 1 is the conditional field, 0 the other."""
    if weight == 1.0:
        return velocity

    def field(x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        # v_w = v(x, t; none) + w (v(x, t, c) - v(x, t; none))
        free = velocity(x, t, None)
        return free + weight * (velocity(x, t, c) - free)

    return field


@dataclass(frozen=True)
class Trajectory:
    """Solutions of dx/dt = v(x, t, c): times [s] from 0 to 1, points [s, n, d], and how often the velocity was evaluated."""

    t: Float[Tensor, " s"]
    x: Float[Tensor, "s n *d"]
    nfe: int

    @property
    def x_1(self) -> Float[Tensor, " n *d"]:
        """The end points [n, d]."""
        return self.x[-1]


def integrate(
    velocity: Velocity, x_0: Float[Tensor, " n *d"], c: Tensor | None = None, method: str = "euler", steps: int = 20
) -> Trajectory:
    """The trajectories [steps + 1, n, d] that carry x_0 from t = 0 to 1.

    Args:
        velocity: of points at times [n] under conditions c.
        x_0: starting points [n, d].
        c: conditions [n, ...], or None for the unconditional field.
        method: one of SOLVERS.
        steps: of the solver, at least 1; for dopri5, which chooses its own, the number of points reported.

    Raises:
        ValueError: for an unknown solver or fewer than one step.
    """
    if method not in SOLVERS:
        raise ValueError(f"choose a solver among {', '.join(SOLVERS)}, not {method!r}")
    check_count("the number of steps", steps)
    nfe = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal nfe
        nfe += 1
        return velocity(x, t.expand(len(x)), c)

    times = torch.linspace(0, 1, steps + 1, dtype=x_0.dtype, device=x_0.device)
    tolerances: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if method == "dopri5" else {}
    return Trajectory(times, odeint(field, x_0, times, method=method, **tolerances), nfe)
