"""The method itself: flow matching on the latents of any encoder, conditioned on a task's context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from flownlib.encoders import Encoder
from flownlib.flow import FlowTraining, Trajectory, VelocityMLP, guided, integrate, train_flow
from flownlib.generators.base import Contexts
from flownlib.zoo import Zoo


@dataclass
class FlowGenerator:
    """Samples z_0 ~ N(0, 1), carries it along v(z, t; y) to z_1, decodes z_1 to weights (FLoWN's recipe).

    With `WeightSpace` as the encoder the same code flows through the weights themselves.
    """

    encoder: Encoder
    name: str = "latent_flow"
    predicts: str = "velocity"
    width: int = 256
    training: FlowTraining = FlowTraining()
    method: str = "euler"
    steps: int = 4
    guidance: float = 1.0
    progress: bool = False
    losses: list[float] = field(default_factory=list, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Train the velocity network on the zoo's latents; each network is shown with a random context of its task."""
        latents = self.encoder.encode(zoo.weights)
        draws = torch.stack([contexts[task] for task in zoo.tasks])  # [tasks, draws, c]
        place = {task: i for i, task in enumerate(zoo.tasks)}
        task_of = torch.tensor([place[task] for task in zoo.table["task"]])
        self.context_mean, self.context_std = draws.mean(dim=(0, 1)), draws.std(dim=(0, 1)).clamp(min=1e-3)
        draws = self.standardise(draws)

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.randint(len(latents), (n,), generator=generator)
            which = torch.randint(draws.shape[1], (n,), generator=generator)
            return torch.randn(n, latents.shape[1], generator=generator), latents[rows], draws[task_of[rows], which]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = VelocityMLP(latents.shape[1], draws.shape[-1], self.width, predicts=self.predicts)
        generator = torch.Generator().manual_seed(seed)
        self.velocity, self.losses = train_flow(network, draw, self.training, generator, progress=self.progress)
        return self

    def standardise(self, y: Tensor) -> Tensor:
        """Contexts as the network sees them."""
        return (y - self.context_mean) / self.context_std

    @torch.no_grad()
    def trajectory(
        self, x_0: Tensor, y: Tensor, steps: int | None = None, method: str | None = None, guidance: float | None = None
    ) -> Trajectory:
        """The latents' way from x_0 [n, k] under one context y [c]."""
        context = self.standardise(y).expand(len(x_0), -1)
        weight = self.guidance if guidance is None else guidance
        return integrate(guided(self.velocity, weight), x_0, context, method or self.method, steps or self.steps)

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]."""
        x_0 = torch.randn(n, self.encoder.latent_dim, generator=generator)
        with torch.no_grad():
            return self.encoder.decode(self.trajectory(x_0, y).x_1)
