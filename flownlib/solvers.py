"""The ODE dx/dt = v(x, t; y): carrying noise to data, guidance, and the log-density that the way back gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from flownlib.checks import check_count

FIXED_STEP_SOLVERS = ("euler", "midpoint", "rk4")
SOLVERS = (*FIXED_STEP_SOLVERS, "dopri5")
Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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
    if method not in SOLVERS:
        raise ValueError(f"choose a solver among {', '.join(SOLVERS)}, not {method!r}")
    check_count("the number of steps", steps)
    calls = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return velocity(x, t.expand(len(x)), y)

    times = torch.linspace(0, 1, steps + 1, dtype=x_0.dtype, device=x_0.device)
    tolerances = {} if method in FIXED_STEP_SOLVERS else {"rtol": 1e-4, "atol": 1e-4}
    return Trajectory(times, odeint(field, x_0, times, method=method, **tolerances), calls)


def divergence(velocity: Velocity, x: Tensor, t: Tensor, y: Tensor | None, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity [n, d] and an estimate of its divergence [n] (Hutchinson 1990).

    Args:
        probes: [r, n, d], independent with mean 0 and covariance I, over which the estimate is averaged; it is unbiased.
            The d unit vectors times sqrt(d) make it exact.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t, y)
        # tr(dv/dx) = E[eps^T (dv/dx) eps]
        products = [torch.autograd.grad(v, x, eps, retain_graph=True)[0] for eps in probes]
    return v.detach(), torch.stack([(p * eps).sum(-1) for p, eps in zip(products, probes, strict=True)]).mean(0)


def log_likelihood(
    velocity: Velocity,
    x_1: Tensor,
    log_density: Callable[[Tensor], Tensor],
    y: Tensor | None = None,
    steps: int = 40,
    probes: int | None = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p_1(x_1) in nats [n], by the instantaneous change of variables (Chen et al. 2018; Lipman et al. 2023, appendix C).

    Args:
        log_density: of the prior, [n, d] → [n]. steps: of the fourth-order Runge-Kutta method, backwards from t = 1.
        probes: Rademacher vectors for the trace, the same for all steps; None computes the trace exactly, at d times the cost.
    """
    n, d = x_1.shape
    if probes is None:
        eps = d**0.5 * torch.eye(d, dtype=x_1.dtype, device=x_1.device)[:, None].expand(-1, n, -1)
    else:
        signs = torch.randint(2, (probes, n, d), generator=generator, device=x_1.device)
        eps = (2 * signs - 1).to(x_1)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return divergence(velocity, state[0], t.expand(n), y, eps)

    times = torch.linspace(1, 0, steps + 1, dtype=x_1.dtype, device=x_1.device)
    x, change = odeint(field, (x_1, torch.zeros(n, dtype=x_1.dtype, device=x_1.device)), times, method="rk4")
    # log p_1(x_1) = log p_0(x_0) - int_0^1 tr(dv/dx) dt; integrating backwards has changed the integral's sign
    return log_density(x[-1]) + change[-1]
