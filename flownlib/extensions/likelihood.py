"""How likely a flow finds a network's latent: the density that following the ODE backwards gives.

Sources: Chen et al. 2018, "Neural ordinary differential equations" (instantaneous change of variables); Lipman et al. 2023,
"Flow matching for generative modeling", appendix C; Hutchinson 1990 (the trace from random probes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from flownlib.flow import Velocity
from flownlib.generators import FlowGenerator


def divergence(velocity: Velocity, x: Tensor, t: Tensor, c: Tensor | None, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity [n, d] and an unbiased estimate of its divergence [n].

    Args:
        velocity: of points [n, d] at times [n] under conditions c.
        probes: [r, n, d], independent with mean 0 and covariance I, over which the estimate is averaged. The d unit vectors
            times sqrt(d) make it exact.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t, c)
        # tr(dv/dx) = E[eps^T (dv/dx) eps]
        products = [torch.autograd.grad(v, x, eps, retain_graph=True)[0] for eps in probes]
    return v.detach(), torch.stack([(p * eps).sum(-1) for p, eps in zip(products, probes, strict=True)]).mean(0)


def log_likelihood(
    velocity: Velocity,
    x_1: Tensor,
    log_density: Callable[[Tensor], Tensor],
    c: Tensor | None = None,
    steps: int = 40,
    probes: int | None = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p_1(x_1) in nats [n].

    Args:
        velocity: of points [n, d] at times [n] under conditions c.
        x_1: [n, d].
        log_density: of the prior, [n, d] → [n].
        c: conditions [n, …], or None for an unconditional flow.
        steps: of the fourth-order Runge-Kutta method, backwards from t = 1.
        probes: Rademacher vectors for the trace, the same for all steps; None computes the trace exactly, at d times the cost.
        generator: of the probes.
    """
    n, d = x_1.shape
    if probes is None:
        eps = d**0.5 * torch.eye(d, dtype=x_1.dtype, device=x_1.device)[:, None].expand(-1, n, -1)
    else:
        signs = torch.randint(2, (probes, n, d), generator=generator, device=generator.device if generator else None)
        eps = (2 * signs - 1).to(x_1)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return divergence(velocity, state[0], t.expand(n), c, eps)

    times = torch.linspace(1, 0, steps + 1, dtype=x_1.dtype, device=x_1.device)
    x, change = odeint(field, (x_1, torch.zeros(n, dtype=x_1.dtype, device=x_1.device)), times, method="rk4")
    # log p_1(x_1) = log p_0(x_0) - int_0^1 tr(dv/dx) dt; integrating backwards has changed the integral's sign
    return log_density(x[-1]) + change[-1]


def latent_log_likelihood(flow: FlowGenerator, weights: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
    """Log-density in nats of the latents of networks [n, p] under one condition c; of latents, not of weights: [n].

    Raises:
        ValueError: if the flow's prior has no density.
    """
    if not hasattr(flow.prior, "log_density"):
        raise ValueError(f"likelihoods need a prior with a density, and {type(flow.prior).__name__} has none")
    conditions = flow.contexts.repeated(c, len(weights))
    latents = flow.encoder.encode(weights)
    return log_likelihood(flow.velocity, latents, flow.prior.log_density, conditions, generator=generator)
