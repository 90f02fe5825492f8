"""One protocol for everything that samples weights, so that a method and its nulls meet on equal terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from flownlib.encoders import WeightSpace
from flownlib.zoo import Zoo

Contexts = Mapping[str, Tensor]  # task name → contexts y [draws, c], one for each support set drawn from the task


class Generator(Protocol):
    """Learns from a zoo whose tasks are described by contexts; samples weights for a context it is given."""

    name: str

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Learn from a zoo in canonical form; returns itself."""

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p] for one context y [c]."""


def task_numbers(zoo: Zoo) -> Tensor:
    """Each network's task as its place in `zoo.tasks`, int64 [n]."""
    place = {task: i for i, task in enumerate(zoo.tasks)}
    return torch.tensor([place[task] for task in zoo.table["task"]])


def variant(generator: Generator, **changes: Any) -> Generator:
    """The same fitted generator with other fields, e.g. another number of solver steps; the given one is not changed."""
    other = copy(generator)
    for name, value in changes.items():
        if not hasattr(generator, name):
            raise ValueError(f"{generator.name} has no field {name!r} to change")
        setattr(other, name, value)
    return other


@dataclass(frozen=True)
class StandardContexts:
    """Contexts as a network sees them: draws [tasks, draws, c], each number standardised over all of them."""

    draws: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, contexts: Contexts, tasks: Sequence[str]) -> StandardContexts:
        """Standardise the contexts of the tasks, in their order."""
        draws = torch.stack([contexts[task] for task in tasks])
        mean, std = draws.mean(dim=(0, 1)), draws.std(dim=(0, 1)).clamp(min=1e-3)
        return cls((draws - mean) / std, mean, std)

    @property
    def dim(self) -> int:
        """c."""
        return self.draws.shape[-1]

    def standardise(self, y: Tensor) -> Tensor:
        """Any context [..., c] in the same units."""
        return (y - self.mean) / self.std

    def draw(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """A random context [n, c] of each of the tasks int64 [n]."""
        return self.draws[tasks, torch.randint(self.draws.shape[1], tasks.shape, generator=generator)]


def mean_contexts(contexts: Contexts, tasks: Sequence[str]) -> Contexts:
    """The mean over each task's support sets: y [c] by task, by which an unseen context is recognised."""
    return {task: contexts[task].mean(0) for task in tasks}


def others(contexts: Contexts) -> Contexts:
    """Each task with the contexts of the next one, the last with those of the first: the wrong ones, as a control."""
    names = list(contexts)
    return {name: contexts[following] for name, following in zip(names, [*names[1:], names[0]], strict=True)}


def nearest_task(centres: Contexts, y: Tensor) -> str:
    """The training task whose mean context [c] is nearest to y [c]."""
    return min(centres, key=lambda name: float((centres[name] - y).norm()))


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
        return self.space.decode(self.draw(n, self.nearest(y), generator))

    @abstractmethod
    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """n standardised vectors from those of one task; each null is this one function."""


def pick(n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
    """n of the rows, drawn with replacement."""
    return rows[torch.randint(len(rows), (n,), generator=generator)]
