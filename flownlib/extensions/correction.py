"""Accuracy for samples that have the zoo's spread: a corrector that was trained on the tasks' images.

A Gaussian of a task's networks, or a flow on principal components, has the right spread and centre but not quite the right
networks. The corrector moves its samples a little, by one step that it has learned on the tasks' TRAINING images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.context import Contexts, StandardContexts
from flownlib.encoders import WeightSpace
from flownlib.flow import VelocityMLP
from flownlib.generators import Generator
from flownlib.networks import Classifier
from flownlib.optimisation import minimise, seeded_module
from flownlib.scoring import Task
from flownlib.weights import check_count
from flownlib.zoo import Zoo


@dataclass(frozen=True)
class CorrectorTraining:
    """How a corrector is trained; `images` and `networks` are those of one step's batch."""

    steps: int = 800
    learning_rate: float = 1e-3
    networks: int = 48
    images: int = 64
    size_penalty: float = 0.05  # on how far a network is moved
    shift_penalty: float = 0.3  # on how far all are moved alike


def correction_loss(
    model: Classifier, weights: Tensor, step: Tensor, x: Tensor, y: Tensor, training: CorrectorTraining
) -> Tensor:
    """Cross-entropy of corrected networks [m, p] on images, plus what their standardised corrections [m, p] cost: a scalar."""
    logits = model.forward(weights, x)
    # L = CE + lambda E|f|^2 + kappa |E f|^2, both per weight
    task_loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(weights)))
    return task_loss + training.size_penalty * step.square().mean() + training.shift_penalty * step.mean(0).square().mean()


@dataclass
class Corrected:
    """x = x_0 + f(x_0; y) with x_0 from another generator and f a residual network that starts at zero.

    Args:
        source: fitted together with the corrector. tasks: by name, of which only training images are used.
    """

    source: Generator
    tasks: Mapping[str, Task]
    name: str = "corrected"
    width: int = 512
    training: CorrectorTraining = CorrectorTraining()
    losses: list[float] = field(default_factory=list, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Fit the source, then the corrector to fresh samples of it."""
        self.source.fit(zoo, contexts, seed)
        self.space, self.contexts, training = WeightSpace.fit(zoo), StandardContexts.fit(contexts, zoo.tasks), self.training
        generator, turn = torch.Generator().manual_seed(seed), iter(range(training.steps))
        sizes = self.space.latent_dim, self.contexts.dim, self.width
        self.corrector = seeded_module(seed, lambda: VelocityMLP(*sizes, depth=2)).to(zoo.weights.device)

        def loss() -> Tensor:
            name = zoo.tasks[next(turn) % len(zoo.tasks)]
            draws, images = contexts[name], self.tasks[name].train
            y = draws[torch.randint(len(draws), (1,), generator=generator)[0]]
            x_0 = self.space.encode(self.source.sample(training.networks, y, generator))
            step = self.step(x_0, y)
            which = torch.randint(len(images), (training.images,), generator=generator)
            return correction_loss(zoo.model, self.space.decode(x_0 + step), step, images.x[which], images.y[which], training)

        self.losses = minimise(loss, self.corrector, training.steps, training.learning_rate, self.name, weight_decay=1e-4)
        return self

    def step(self, x_0: Tensor, y: Tensor) -> Tensor:
        """f(x_0; y) in standardised weights [n, p], for one context y [c]."""
        context = self.contexts.repeated(y, len(x_0))
        return self.corrector.predict(x_0, torch.zeros(len(x_0), dtype=x_0.dtype, device=x_0.device), context)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]; no gradient is taken."""
        x_0 = self.space.encode(self.source.sample(n, y, generator))
        return self.space.decode(x_0 + self.step(x_0, y))


@dataclass
class FreshTraining:
    """The null of all nulls, to be trained further: freshly initialised networks, whatever the context."""

    name: str = "fresh"

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Nothing to learn."""
        self.model, self.like = zoo.model, zoo.weights[:0]
        return self

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p] as torch initialises them."""
        check_count("the number of networks", n)
        return self.model.initialise(n, generator).to(self.like)
