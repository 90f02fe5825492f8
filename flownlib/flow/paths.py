"""Probability paths: how a point of noise x_0 becomes a point of data x_1, and what a network may predict along the way.

Every path here mixes its ends, x_t = alpha(t) x_1 + beta(t) x_0 (+ sigma eps), so that end points, noise and velocity are
one another's linear functions at a given x_t. Shapes: x [n, ...], t [n] in [0, 1].
Sources: Lipman et al. 2023, "Flow matching for generative modeling"; Albergo & Vanden-Eijnden 2023, "Building normalizing
flows with stochastic interpolants"; Tong et al. 2024, "Improving and generalizing flow-based generative models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
