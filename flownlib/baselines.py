"""One protocol for everything that samples weights, so that a method and its nulls meet on equal terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from flownlib.checks import check_count
from flownlib.encoders import WeightSpace
from flownlib.generators import Contexts, mean_contexts, nearest_task
from flownlib.zoo import Zoo


class Retrieving(ABC):
    """Shared by the nulls: remember the zoo in standardised weights and answer a context with its nearest task's networks."""

    name = "retrieving"

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Store each task's standardised networks and mean context. Nothing is random here."""
        self.space = WeightSpace.fit(zoo)
        self.rows = {task: self.space.encode(zoo.task(task).weights) for task in zoo.tasks}
        self.centres = mean_contexts(contexts, zoo.tasks)
        return self

    def nearest(self, y: Tensor) -> Tensor:
        """Standardised networks [n, p] of the training task whose mean context is nearest to y."""
        return self.rows[nearest_task(self.centres, y)]

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]."""
        check_count("the number of networks", n)
        return self.space.decode(self.draw(n, self.nearest(y), generator))

    @abstractmethod
    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """n standardised vectors from those of one task; each null is this one function."""


def pick(n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
    """n of the rows, drawn with replacement."""
    return rows[torch.randint(len(rows), (n,), generator=generator)]


class Retrieval(Retrieving):
    """Copies of training networks of the nearest task."""

    name = "retrieval"

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows as they are."""
        return pick(n, rows, generator)


class Noise(Retrieving):
    """Training networks plus Gaussian noise, `strength` in units of each tensor's spread."""

    def __init__(self, strength: float) -> None:
        self.strength, self.name = strength, f"noise_{strength:g}"

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """x = x_train + strength * eps."""
        return pick(n, rows, generator) + self.strength * torch.randn(n, rows.shape[1], generator=generator)


class Soup(Retrieving):
    """The average of the task's networks (Wortsman et al. 2022), n times."""

    name = "soup"

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """x = mean of the rows."""
        return rows.mean(0).expand(n, -1)


class Gaussian(Retrieving):
    """The task's empirical Gaussian: full covariance (of rank n - 1) or its diagonal."""

    def __init__(self, diagonal: bool = False) -> None:
        self.diagonal, self.name = diagonal, "gaussian_diagonal" if diagonal else "gaussian"

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """x = mean + A eps with A A^T the empirical covariance."""
        mean = rows.mean(0)
        if self.diagonal:
            return mean + rows.std(0) * torch.randn(n, rows.shape[1], generator=generator)
        eps = torch.randn(n, len(rows), generator=generator)
        return mean + eps @ (rows - mean) / (len(rows) - 1) ** 0.5


class Interpolation(Retrieving):
    """Points drawn uniformly on the segment between two training networks of the task."""

    name = "interpolation"

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """x = (1 - u) x_a + u x_b."""
        share = torch.rand(n, 1, generator=generator)
        return (1 - share) * pick(n, rows, generator) + share * pick(n, rows, generator)


def all_nulls() -> list[Retrieving]:
    """Every null of the comparison, fresh."""
    return [Retrieval(), Noise(0.1), Noise(0.3), Noise(0.5), Soup(), Gaussian(), Gaussian(diagonal=True), Interpolation()]
