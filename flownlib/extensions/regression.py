"""Two rivals that skip the flow: a hypernetwork, and a kernel density of each task's latents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.context import Contexts, StandardContexts, mean_contexts, nearest_task
from flownlib.encoders import Encoder
from flownlib.generators import FlowTraining, task_numbers
from flownlib.optimisation import minimise, seeded_module
from flownlib.weights import check_count, drawn
from flownlib.zoo import Zoo


@dataclass
class HyperNetwork:
    """y → weights by regression on the encoder's latents (Ha et al. 2017): one network for each context, n times."""

    encoder: Encoder
    name: str = "hypernetwork"
    width: int = 256
    training: FlowTraining = FlowTraining()
    losses: list[float] = field(default_factory=list, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Minimise the squared distance to the latents of the context's task."""
        latents, task_of = self.encoder.encode(zoo.weights), task_numbers(zoo)
        self.contexts, generator = StandardContexts.fit(contexts, zoo.tasks), torch.Generator().manual_seed(seed)
        c, k = self.contexts.dim, self.encoder.latent_dim
        layers = lambda: nn.Sequential(nn.Linear(c, self.width), nn.SiLU(), nn.Linear(self.width, k))
        self.regressor = seeded_module(seed, layers).to(latents.device)

        def loss() -> Tensor:
            rows = torch.randint(len(latents), (self.training.batch_size,), generator=generator)
            return F.mse_loss(self.regressor(self.contexts.draw(task_of[rows], generator)), latents[rows])

        how = self.training
        self.losses = minimise(loss, self.regressor, how.steps, how.learning_rate, self.name, how.weight_decay)
        return self

    @torch.no_grad()
    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """The same weight vector n times [n, p]."""
        check_count("the number of networks", n)
        return self.encoder.decode(self.regressor(self.contexts.repeated(y, 1))).expand(n, -1)


@dataclass
class KernelDensity:
    """Each latent coordinate is drawn on its own from the task's networks, plus a Gaussian kernel (Schürholt et al. 2022).

    Args:
        bandwidth: of the kernel, in units of Scott's rule, deviation * n^(-1/5).
    """

    encoder: Encoder
    name: str = "kernel_density"
    bandwidth: float = 1.0

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Remember each task's latents and mean context. Nothing is random here."""
        self.rows = {task: self.encoder.encode(zoo.task(task).weights) for task in zoo.tasks}
        self.centres = mean_contexts(contexts, zoo.tasks)
        return self

    @torch.no_grad()
    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]."""
        check_count("the number of networks", n)
        rows = self.rows[nearest_task(self.centres, y)]
        picked = rows.gather(0, torch.randint(len(rows), (n, rows.shape[1]), generator=generator).to(rows.device))
        # z = z_i + h eps with h = bandwidth * deviation * n^(-1/5)
        width = self.bandwidth * rows.std(0) * len(rows) ** -0.2
        return self.encoder.decode(picked + width * drawn(torch.randn, picked.shape, generator, picked))
