"""From a task's support images to the condition c of a generator, and the contexts of many tasks as a network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.weights import Float, Int, check_condition, check_count, check_real

Contexts = Mapping[str, Tensor]  # task name → conditions c [draws, c], one for each support set drawn from the task


def set_mean_context(features: Float[Tensor, "k d"], labels: Int[Tensor, " k"], num_classes: int) -> Float[Tensor, " c"]:
    """The simplest condition, c [num_classes * d]: each class's mean feature, one after the other.

    The order of the support images does not matter; permuting the labels permutes the blocks of c.

    Args:
        features: [k, d], one row a support image.
        labels: int64 [k] in 0, …, num_classes - 1, every class at least once.
        num_classes: number of blocks.

    Raises:
        ValueError: if a class has no support image.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if len(counts) > num_classes or (counts == 0).any():
        raise ValueError(
            f"a context needs support images of each of the {num_classes} classes, the counts are {counts.tolist()}"
        )
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    return (sums.index_add(0, labels, features) / counts[:, None]).flatten()


@dataclass(frozen=True)
class StandardContexts:
    """Contexts as a network sees them: draws [tasks, draws, c], each number standardised over all of them."""

    draws: Float[Tensor, "tasks draws c"]
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    @classmethod
    def fit(cls, contexts: Contexts, tasks: Sequence[str]) -> StandardContexts:
        """The contexts of the tasks, in their order, standardised.

        Raises:
            ValueError: if a task has none, they are not finite or differ in size, or there are less than two in all.
        """
        draws = torch.stack(_draws_of(contexts, tasks))
        if draws.shape[0] * draws.shape[1] < 2:
            raise ValueError("contexts can be standardised only if there are two of them or more; draw another support set")
        mean, std = draws.mean(dim=(0, 1)), draws.std(dim=(0, 1)).clamp(min=1e-3)
        return cls((draws - mean) / std, mean, std)

    @property
    def dim(self) -> int:
        """Length of a condition."""
        return self.draws.shape[-1]

    def repeated(self, c: Tensor, n: int) -> Float[Tensor, "n c"]:
        """Any one condition [c] in the same units, for n networks: [n, c].

        Raises:
            ValueError: for a condition of another size than those of `fit`, or not finite, or n below 1.
        """
        check_count("the number of networks", n)
        check_condition(c, self.dim)
        return ((c - self.mean) / self.std).expand(n, -1)

    def draw(self, tasks: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n c"]:
        """A random condition [n, c] of each of the tasks int64 [n]."""
        return self.draws[tasks, torch.randint(self.draws.shape[1], tasks.shape, generator=generator)]


def mean_contexts(contexts: Contexts, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The mean over each task's support sets: c [c] by task, by which an unseen context is recognised.

    Raises:
        ValueError: if a task has no contexts, or they are not finite, or differ in size.
    """
    return {task: draws.mean(0) for task, draws in zip(tasks, _draws_of(contexts, tasks), strict=True)}


def nearest_task(centres: Contexts, c: Tensor) -> str:
    """The training task whose mean context [c] is nearest to c [c]; another size would be broadcast, and is refused."""
    check_condition(c, *next(iter(centres.values())).shape)
    return min(centres, key=lambda name: float((centres[name] - c).norm()))


def _draws_of(contexts: Contexts, tasks: Sequence[str]) -> list[Tensor]:
    """Each task's contexts [draws, c], in the order of the tasks."""
    missing = [task for task in tasks if task not in contexts]
    if missing:
        raise ValueError(f"a generator needs contexts of every task, and there are none of {', '.join(missing)}")
    for task in tasks:
        check_real(f"the contexts of {task!r}", contexts[task], contexts[tasks[0]].shape[-1:])
    return [contexts[task] for task in tasks]
