"""Latent diffusion of weights, the flow's closest relative: p-diff's generator (Wang et al. 2024), DDPM or DDIM sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from flownlib.context import Contexts, StandardContexts
from flownlib.encoders import Encoder
from flownlib.flow import PathSample, VelocityMLP
from flownlib.generators import FlowLog, FlowTraining, task_numbers, train_flow
from flownlib.optimisation import seeded_module
from flownlib.weights import check_count, drawn
from flownlib.zoo import Zoo


@dataclass(frozen=True)
class NoiseSchedule:
    """Ho et al. 2020: x_s = sqrt(abar_s) x_data + sqrt(1 - abar_s) eps for s = 0, …, levels - 1, from nearly clean to noise.

    `alpha_bars` [levels] falls from almost 1 to almost 0; betas grow linearly from 1e-4 to 0.02 over 1,000 levels.
    """

    alpha_bars: Tensor

    @classmethod
    def linear(cls, levels: int = 1000) -> NoiseSchedule:
        """The schedule of Ho et al. 2020, scaled to other numbers of levels."""
        betas = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64) * 1000 / levels
        return cls((1 - betas.clamp(max=0.999)).cumprod(0).float())

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """Noised data, so that the flow's training loop can be used: x_0 is noise, x_1 data, t in [0, 1) from noise to data."""
        abar = self.alpha_bars.to(x_1)[self.level(t)][:, None]
        return PathSample(x_0, x_1, t, abar.sqrt() * x_1 + (1 - abar).sqrt() * x_0, torch.zeros_like(x_1))

    def level(self, t: Tensor) -> Tensor:
        """The level of a time, int64: t = 0 is the noisiest, as in a flow."""
        return ((1 - t) * len(self.alpha_bars)).long().clamp(max=len(self.alpha_bars) - 1)

    def time(self, level: int) -> float:
        """A time of that level, in the middle of its interval."""
        return 1 - (level + 0.5) / len(self.alpha_bars)


def reverse(
    schedule: NoiseSchedule,
    noise_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    steps: int,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """From noise x [n, d] to data in `steps` of evenly spaced levels (Song et al. 2021, DDIM, equation 12).

    Args:
        noise_of: (x [n, d], t [n]) → predicted eps [n, d]. eta: 0 is DDIM, deterministic; 1 is DDPM's ancestral sampling.
    """
    check_count("the number of steps", steps)
    levels = torch.linspace(len(schedule.alpha_bars) - 1, 0, steps).round().long().tolist()
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        abar = schedule.alpha_bars[level]
        before = torch.ones(()) if following is None else schedule.alpha_bars[following]
        eps = noise_of(x, torch.full((len(x),), schedule.time(level), dtype=x.dtype, device=x.device))
        # x_data = (x - sqrt(1 - abar) eps) / sqrt(abar)
        data = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        # sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar')
        sigma = eta * ((1 - before) / (1 - abar) * (1 - abar / before)).clamp(min=0).sqrt()
        # x' = sqrt(abar') x_data + sqrt(1 - abar' - sigma^2) eps + sigma z
        x = before.sqrt() * data + (1 - before - sigma**2).clamp(min=0).sqrt() * eps
        if following is not None and eta:
            x = x + sigma * drawn(torch.randn, x.shape, generator, x)
    return x


@dataclass
class LatentDiffusion:
    """Predicts the noise in noisy latents and takes it away step by step; context as in `FlowGenerator`.

    Args:
        levels: of noise in training. steps: of sampling, at most `levels`. eta: 1 for DDPM, 0 for DDIM.
    """

    encoder: Encoder
    name: str = "latent_ddpm"
    width: int = 256
    training: FlowTraining = FlowTraining()
    levels: int = 1000
    steps: int = 1000
    eta: float = 1.0
    log: FlowLog = field(default_factory=FlowLog, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Train the denoiser on the zoo's latents."""
        latents, task_of = self.encoder.encode(zoo.weights), task_numbers(zoo)
        self.contexts, self.schedule = StandardContexts.fit(contexts, zoo.tasks), NoiseSchedule.linear(self.levels)

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.randint(len(latents), (n,), generator=generator)
            noise = drawn(torch.randn, (n, latents.shape[1]), generator, latents)
            return noise, latents[rows], self.contexts.draw(task_of[rows], generator)

        sizes = latents.shape[1], self.contexts.dim, self.width
        network = seeded_module(seed, lambda: VelocityMLP(*sizes, predicts="noise")).to(latents.device)
        generator = torch.Generator().manual_seed(seed)
        self.denoiser, self.log = train_flow(network, draw, self.training, generator, self.schedule, progress=False)
        return self

    @torch.no_grad()
    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]."""
        context = self.contexts.repeated(y, n)
        noise = drawn(torch.randn, (n, self.encoder.latent_dim), generator, context)
        noise_of = lambda x, t: self.denoiser.predict(x, t, context)
        return self.encoder.decode(reverse(self.schedule, noise_of, noise, self.steps, self.eta, generator))
