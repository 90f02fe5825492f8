"""Baselines that a generator has to beat: copies, noise, averages, Gaussians and interpolations of training networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from flownlib.context import Contexts, mean_contexts, nearest_task
from flownlib.encoders import WeightSpace
from flownlib.weights import Float, Weights, check_count, drawn
from flownlib.zoo import Zoo


class Retrieving(ABC):
    """Shared by the baselines: a zoo in standardised weights, of which the task nearest to a condition is asked."""

    name = "retrieving"

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Itself, holding each task's standardised networks and mean context. Nothing is random here."""
        self.space = WeightSpace.fit(zoo)
        self.rows = {task: self.space.encode(zoo.task(task).weights) for task in zoo.tasks}
        self.centres = mean_contexts(contexts, zoo.tasks)
        return self

    def nearest(self, c: Tensor) -> Weights:
        """Standardised networks [n, p] of the training task whose mean context is nearest to c [c]."""
        return self.rows[nearest_task(self.centres, c)]

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Weights:
        """n weight vectors [n, p] for one condition c [c]."""
        check_count("the number of networks", n)
        return self.space.decode(self.draw(n, self.nearest(c), generator))

    @abstractmethod
    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """n standardised vectors [n, p] from those of one task [m, p]; each baseline is this one function."""


def pick(n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
    """n of the rows, drawn with replacement [n, p]."""
    return rows[torch.randint(len(rows), (n,), generator=generator)]


class Retrieval(Retrieving):
    """Copies of training networks of the nearest task."""

    name = "retrieval"

    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """x = x_train [n, p]."""
        return pick(n, rows, generator)


class Noise(Retrieving):
    """Training networks plus Gaussian noise, `strength` >= 0 in units of each tensor's spread."""

    def __init__(self, strength: float) -> None:
        self.strength, self.name = strength, f"noise_{strength:g}"

    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """x = x_train + strength * eps [n, p]."""
        return pick(n, rows, generator) + self.strength * drawn(torch.randn, (n, rows.shape[1]), generator, rows)


class Soup(Retrieving):
    """The average of the task's networks, n times (Wortsman et al. 2022, "Model soups")."""

    name = "soup"

    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """x = mean of the rows [n, p]."""
        return rows.mean(0).expand(n, -1)


class Gaussian(Retrieving):
    """The task's empirical Gaussian: full covariance (of rank n - 1) or its diagonal."""

    def __init__(self, diagonal: bool = False) -> None:
        self.diagonal, self.name = diagonal, "gaussian_diagonal" if diagonal else "gaussian"

    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """x = mean + A eps with A A^T the empirical covariance [n, p]."""
        mean = rows.mean(0)
        if self.diagonal:
            return mean + rows.std(0) * drawn(torch.randn, (n, rows.shape[1]), generator, rows)
        eps = drawn(torch.randn, (n, len(rows)), generator, rows)
        return mean + eps @ (rows - mean) / (len(rows) - 1) ** 0.5


class Interpolation(Retrieving):
    """Points drawn uniformly on the segment between two training networks of the task."""

    name = "interpolation"

    def draw(self, n: int, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Weights:
        """x = (1 - u) x_a + u x_b [n, p]."""
        u = drawn(torch.rand, (n, 1), generator, rows)
        return (1 - u) * pick(n, rows, generator) + u * pick(n, rows, generator)


def all_baselines() -> list[Retrieving]:
    """Every baseline of the comparison, not yet fitted."""
    return [Retrieval(), Noise(0.1), Noise(0.3), Noise(0.5), Soup(), Gaussian(), Gaussian(diagonal=True), Interpolation()]
