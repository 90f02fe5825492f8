"""What we ask of generated weights: how accurate, how spread, how central, how new. Never one number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from flownlib.encoders import WeightSpace
from flownlib.generators import Contexts, Generator
from flownlib.scoring import Scores, score
from flownlib.statistics import Interval, mean_interval, proportion_interval
from flownlib.tasks import Task
from flownlib.training import seeded
from flownlib.zoo import Zoo

MEASURES = (
    "test_accuracy_mean",
    "test_accuracy_median",
    "test_accuracy_best_by_validation",
    "spread",
    "offset",
    "nearest_training_distance",
    "error_overlap",
)


def error_overlap(wrong_a: Tensor, wrong_b: Tensor) -> Tensor:
    """Intersection over union of error sets, bool [n, images] × [m, images] → [n, m] (Zeng et al. 2025)."""
    a, b = wrong_a.float(), wrong_b.float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp(min=1)


def nearest_distance(x: Tensor, rows: Tensor) -> Tensor:
    """Distance [n] from each x [n, p] to the nearest of the rows [m, p]; exact, so that a copy is at 0."""
    return torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


@dataclass(frozen=True)
class Reference:
    """One task's zoo, against which samples are judged. Distances are between standardised canonical weights."""

    task: Task
    zoo: Zoo
    space: WeightSpace
    rows: Tensor  # training networks, standardised [n, p]
    wrong: Tensor  # their errors on the test images, bool [n, images]
    radius: float  # root mean square distance of a training network from their mean
    held_out_distance: float  # mean distance of a held-out network to its nearest training network

    @classmethod
    def of(cls, task: Task, train: Zoo, held_out: Zoo, space: WeightSpace) -> Reference:
        """Measure one task's training and held-out networks (zoos in canonical form)."""
        train, held_out = train.task(task.name), held_out.task(task.name)
        rows, held = space.encode(train.weights), space.encode(held_out.weights)
        radius = ((rows - rows.mean(0)).square().sum() / (len(rows) - 1)).sqrt()
        distance = nearest_distance(held, rows).mean()
        wrong = score(train.model, train.weights, task.test.x, task.test.y).wrong
        return cls(task, train, space, rows, wrong, float(radius), float(distance))


@dataclass(frozen=True)
class Judgement:
    """Samples of one method for one task: per-network numbers [n], and three numbers about the set."""

    validation: Scores
    test: Scores
    nearest: Tensor
    overlap: Tensor
    spread: float
    offset: float

    @property
    def best(self) -> int:
        """The network with the best validation accuracy."""
        return int(self.validation.accuracy.argmax())

    def measures(self) -> dict[str, float]:
        """One value for each of `MEASURES`."""
        accuracy = self.test.accuracy
        values = (
            accuracy.mean(),
            accuracy.median(),
            accuracy[self.best],
            self.spread,
            self.offset,
            self.nearest.mean(),
            self.overlap.mean(),
        )
        return {name: float(value) for name, value in zip(MEASURES, values, strict=True)}

    def intervals(self) -> dict[str, Interval]:
        """Intervals over the sampled networks, or over test images for the one network chosen by validation."""
        right = int((~self.test.wrong[self.best]).sum())
        return {
            "test_accuracy_mean": mean_interval(self.test.accuracy.numpy()),
            "test_accuracy_best_by_validation": proportion_interval(right, self.test.wrong.shape[1]),
            "nearest_training_distance": mean_interval(self.nearest.numpy()),
            "error_overlap": mean_interval(self.overlap.numpy()),
        }


def judge(weights: Tensor, reference: Reference) -> Judgement:
    """Everything we ask of the samples [n, p] for one task.

    spread: 1 = the zoo's. offset: 0 = the zoo's mean, in units of the zoo's radius. nearest: 1 = a held-out network's.
    """
    task, x = reference.task, reference.space.encode(weights)
    validation, test = (score(reference.zoo.model, weights, s.x, s.y) for s in (task.validation, task.test))
    spread = ((x - x.mean(0)).square().sum() / max(len(x) - 1, 1)).sqrt() / reference.radius
    offset = (x.mean(0) - reference.rows.mean(0)).norm() / reference.radius
    nearest = nearest_distance(x, reference.rows) / reference.held_out_distance
    overlap = error_overlap(test.wrong, reference.wrong).max(1).values
    return Judgement(validation, test, nearest, overlap, float(spread), float(offset))


def compare(
    generators: Sequence[Generator], references: Mapping[str, Reference], contexts: Contexts, held_out: Zoo, n: int, seed: int
) -> pd.DataFrame:
    """One row for each method and task, the held-out zoo first: `MEASURES` by name, and each network's test accuracy.

    Every method is given the same contexts, one support set a task that it was not trained with.
    """
    rows = []
    for number, (name, reference) in enumerate(references.items()):
        judged = {"zoo_held_out": judge(held_out.task(name).weights, reference)}
        for generator in generators:
            weights = generator.sample(n, contexts[name][0], seeded(seed, number))
            judged[generator.name] = judge(weights, reference)
        rows += [
            {"method": method, "task": name, **judgement.measures(), "accuracies": judgement.test.accuracy.tolist()}
            for method, judgement in judged.items()
        ]
    return pd.DataFrame(rows)
