"""Which training networks is a network nearest to, whatever the order and the scale of its hidden units?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from flownlib.checks import check_real
from flownlib.encoders import WeightSpace
from flownlib.generators import Contexts, Generator
from flownlib.networks import Classifier
from flownlib.optimisation import seeded
from flownlib.scoring import Scores, Task, logits_of, score
from flownlib.statistics import Interval, energy_test, mean_interval, proportion_interval
from flownlib.symmetry import Aligner, match
from flownlib.zoo import Zoo


def distances(x: Tensor, rows: Tensor) -> Tensor:
    """Euclidean distances [n, m] between x [n, p] and rows [m, p]; exact, so that a copy is at 0."""
    return torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training networks of n networks, nearest first: distances [n, k], and rows of the training zoo [n, k]."""

    distance: Tensor
    row: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """The training networks of one task, in canonical form, and the space in which distances to them are measured.

    aligner: what gave them that form; without one, weights are compared as they are.
    """

    train: Zoo
    space: WeightSpace
    aligner: Aligner | None = None

    def canonical(self, weights: Tensor) -> Tensor:
        """The same networks [n, p], balanced and matched to the task's reference as the zoo was."""
        if self.aligner is None:
            return weights
        table = pd.DataFrame({"task": [self.train.tasks[0]] * len(weights)})
        return self.aligner(Zoo(weights, table, self.train.model), restarts=3).weights

    def matched(self, weights: Tensor, row: int) -> Tensor:
        """Networks [n, p] with their hidden units in the order that suits one training network best."""
        if self.aligner is None:
            return weights
        return match(self.train.model, weights, self.train.weights[row], torch.Generator(), restarts=1)

    def nearest(self, weights: Tensor, k: int = 3) -> Neighbours:
        """The k nearest training networks of networks in canonical form [n, p], in standardised weights.

        Matching to a common reference can end in another order than the training network's own, and a copy would then
        look new; so each network is matched once more to the k that seem nearest, and the smaller distance counts.
        """
        rows = self.space.encode(self.train.weights)
        distance, row = distances(self.space.encode(weights), rows).topk(min(k, len(rows)), largest=False)
        for candidate in row.unique().tolist():
            n, place = (row == candidate).nonzero(as_tuple=True)
            again = (self.space.encode(self.matched(weights[n], candidate)) - rows[candidate]).norm(dim=1)
            distance[n, place] = torch.minimum(distance[n, place], again)
        order = distance.argsort(1)
        return Neighbours(distance.gather(1, order), row.gather(1, order))


MEASURES = (
    "test_accuracy_mean",
    "test_accuracy_median",
    "test_accuracy_best_by_validation",
    "spread",
    "offset",
    "nearest_training_distance",
    "error_overlap",
    "two_sample_p_weights",
    "two_sample_p_behaviour",
)
HELD_OUT = "zoo_held_out"  # the name of the networks that everybody is compared with
TWIN, SAME = 0.5, 0.01  # of the distance between two networks that were trained apart: a near copy, a copy
PROBES = 200  # validation images on which behaviour is compared
PERMUTATIONS = 999


def error_overlap(wrong_a: Tensor, wrong_b: Tensor) -> Tensor:
    """Intersection over union of error sets, bool [n, images] × [m, images] → [n, m] (Zeng et al. 2025)."""
    a, b = wrong_a.float(), wrong_b.float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp(min=1)


def behaviour(model: Classifier, weights: Tensor, images: Tensor) -> Tensor:
    """Class probabilities of each network on the images, one image after the other: [n, images * classes]."""
    return logits_of(model, weights, images).softmax(-1).flatten(1)


@dataclass(frozen=True)
class Points:
    """Networks as points: standardised canonical weights [n, p], and `behaviour` on the probe images."""

    weights: Tensor
    behaviour: Tensor


@dataclass(frozen=True)
class Reference:
    """One task's zoo, against which samples are judged. Distances are between standardised canonical weights."""

    task: Task
    around: Neighbourhood  # the training networks
    training: Points
    held_out: Points
    scores: Scores  # of the training networks on the test images
    radius: float  # root mean square distance of a training network from their mean
    held_out_distance: float  # mean distance of a held-out network to its nearest training network

    @classmethod
    def of(cls, task: Task, train: Zoo, held_out: Zoo, space: WeightSpace, aligner: Aligner | None = None) -> Reference:
        """Measure one task's training and held-out networks (zoos in canonical form).

        Args:
            aligner: what gave the zoos that form; samples are brought to it before they are measured.

        Raises:
            ValueError: if the zoos have too few networks of the task, or some that are copies: of each other, or held out
                and near copies of training networks.
        """
        for zoo, least in ((train, 2), (held_out, 1)):
            if (zoo.table["task"] == task.name).sum() < least:
                raise ValueError(
                    f"a comparison needs 2 training networks and a held-out one of task {task.name!r}; "
                    f"the zoo is of {', '.join(map(repr, zoo.tasks)) or 'no task'}"
                )
        train = train.task(task.name)
        around = Neighbourhood(train, space, aligner)
        held = around.canonical(held_out.task(task.name).weights)  # once more, as every sample will be
        training, unseen = (_points(around, task, weights) for weights in (train.weights, held))
        found = around.nearest(held)
        _refuse_copies(task.name, training.weights, unseen.weights, found)
        radius = ((training.weights - training.weights.mean(0)).square().sum() / (len(train) - 1)).sqrt()
        scores = score(train.model, train.weights, task.test.x, task.test.y)
        return cls(task, around, training, unseen, scores, float(radius), float(found.distance[:, 0].mean()))


def twin_distance(rows: Tensor) -> Tensor:
    """Each row's distance [n] to the nearest other row; infinite for a row alone."""
    return distances(rows, rows).fill_diagonal_(math.inf).min(1).values


def _refuse_copies(task: str, training: Tensor, held_out: Tensor, found: Neighbours) -> None:
    """Copies in a reference fool whoever is judged by it: of a leak, the copier who copies no more than the held-out do."""
    for name, apart in (("training", twin_distance(training)), ("held-out", twin_distance(held_out))):
        copies = int((apart <= SAME * apart.median()).sum()) if len(apart) > 1 else 0
        if copies:
            raise ValueError(
                f"{copies} of the {len(apart)} {name} networks of task {task!r} are copies of one another; keep one of each"
            )
    nearest, row = found.distance[:, 0], found.row[:, 0]
    # a training network's own neighbour tells how close networks come that were trained apart
    leaked = int((nearest < TWIN * twin_distance(training)[row]).sum())
    if leaked:
        raise ValueError(
            f"{leaked} of the {len(nearest)} held-out networks of task {task!r} are copies or near copies of training networks; "
            "hold out whole runs, so that no run is on both sides"
        )


def _points(around: Neighbourhood, task: Task, canonical: Tensor) -> Points:
    probes = task.validation.x[:PROBES]
    return Points(around.space.encode(canonical), behaviour(around.train.model, canonical, probes))


@dataclass(frozen=True)
class Judgement:
    """Samples of one method for one task: per-network numbers [n], and numbers about the set."""

    validation: Scores
    test: Scores
    canonical: Tensor  # the samples as they were compared [n, p]
    neighbours: Neighbours  # distances in units of a held-out network's
    overlap: Tensor
    spread: float
    offset: float
    p_weights: float
    p_behaviour: float
    twins: float  # median distance of a sample to the nearest other one, in the same units

    @property
    def reach(self) -> float:
        """How far the samples lie from the zoo's mean (root mean square), in units of the zoo's radius; 1 = as networks do."""
        n = len(self.canonical)
        return math.hypot(self.spread * ((n - 1) / n) ** 0.5, self.offset)

    @property
    def nearest(self) -> Tensor:
        """Distance to the nearest training network [n]."""
        return self.neighbours.distance[:, 0]

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
            self.p_weights,
            self.p_behaviour,
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


def judge(weights: Tensor, reference: Reference, against: Points | None = None, seed: int = 0) -> Judgement:
    """Everything we ask of the samples [n, p] for one task, after they were aligned as the zoo was.

    spread: 1 = the zoo's. offset: 0 = the zoo's mean, in units of the zoo's radius. nearest: 1 = a held-out network's.
    The two-sample tests ask whether held-out networks, or those given as `against`, are told apart from the samples.

    Raises:
        ValueError: if the samples are not finite rows of the zoo's length, or there are none.
    """
    task, around = reference.task, reference.around
    check_real(f"samples for {task.name!r}", weights, (around.train.layout.size,))
    validation, test = (score(around.train.model, weights, s.x, s.y) for s in (task.validation, task.test))
    canonical = around.canonical(weights)
    points, against = _points(around, task, canonical), against or reference.held_out
    x, rows = points.weights, reference.training.weights
    spread = ((x - x.mean(0)).square().sum() / max(len(x) - 1, 1)).sqrt() / reference.radius
    offset = (x.mean(0) - rows.mean(0)).norm() / reference.radius
    found = around.nearest(canonical)
    neighbours = Neighbours(found.distance / reference.held_out_distance, found.row)
    twins = float(twin_distance(x).median() / reference.held_out_distance)
    overlap = error_overlap(test.wrong, reference.scores.wrong).max(1).values
    _, p_weights = energy_test(x, against.weights, PERMUTATIONS, seeded(seed, 0))
    _, p_behaviour = energy_test(points.behaviour, against.behaviour, PERMUTATIONS, seeded(seed, 1))
    return Judgement(
        validation, test, canonical, neighbours, overlap, float(spread), float(offset), p_weights, p_behaviour, twins
    )


def check_names(names: Sequence[str]) -> None:
    """Refuse methods that a table could not tell apart.

    Raises:
        ValueError: if there is none, two have one name, or one has the held-out networks' name.
    """
    twice = sorted({name for name in names if names.count(name) > 1 or name == HELD_OUT})
    if twice or not names:
        raise ValueError(
            f"a table needs methods of different names, none of them {HELD_OUT!r}; "
            + (f"rename {', '.join(map(repr, twice))}" if twice else "there are none")
        )


def compare(
    generators: Sequence[Generator], references: Mapping[str, Reference], contexts: Contexts, held_out: Zoo, n: int, seed: int
) -> pd.DataFrame:
    """One row for each method and task, the held-out zoo first: `MEASURES` by name, and each network's test accuracy.

    Every method is given the same contexts, one support set a task that it was not trained with. The two-sample tests of the
    held-out networks, which are equal to themselves, are against the training networks.

    Raises:
        ValueError: if two generators have one name.
    """
    check_names([generator.name for generator in generators])
    rows = []
    for number, (name, reference) in enumerate(references.items()):
        judged = {HELD_OUT: judge(held_out.task(name).weights, reference, reference.training)}
        for generator in generators:
            weights = generator.sample(n, contexts[name][0], seeded(seed, number))
            judged[generator.name] = judge(weights, reference)
        rows += [
            {"method": method, "task": name, **judgement.measures(), "accuracies": judgement.test.accuracy.tolist()}
            for method, judgement in judged.items()
        ]
    return pd.DataFrame(rows)
