"""What is asked of generated networks: accuracy, diversity, novelty, and whether they are told apart from held-out ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from flownlib.context import Contexts
from flownlib.encoders import WeightSpace
from flownlib.generators import Generator
from flownlib.networks import Model
from flownlib.optimisation import seeded
from flownlib.scoring import Scores, Task, logits_of, score
from flownlib.statistics import energy_test
from flownlib.symmetry import Aligner, match
from flownlib.weights import Bool, Float, Images, Int, Weights, check_real
from flownlib.zoo import Zoo


def distances(x: Weights, rows: Float[Tensor, "m p"]) -> Float[Tensor, "n m"]:
    """Euclidean distances [n, m] between x [n, p] and rows [m, p]; exact, so that a copy is at 0."""
    return torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training networks of n networks, nearest first: distances [n, k], and rows of the training zoo [n, k]."""

    distance: Float[Tensor, "n k"]
    row: Int[Tensor, "n k"]


@dataclass(frozen=True)
class Neighbourhood:
    """The training networks of one task, in canonical form, and the space in which distances to them are measured."""

    train: Zoo
    space: WeightSpace
    aligner: Aligner | None = None  # what gave them that form; without one, weights are compared as they are

    def canonical(self, weights: Weights) -> Weights:
        """The same networks [n, p], balanced and matched to the task's reference as the zoo was."""
        if self.aligner is None:
            return weights
        table = pd.DataFrame({"task": [self.train.tasks[0]] * len(weights)})
        return self.aligner(Zoo(weights, table, self.train.model), restarts=3).weights

    def matched(self, weights: Weights, row: int) -> Weights:
        """Networks [n, p] with their hidden units in the order that suits one training network best."""
        if self.aligner is None:
            return weights
        return match(self.train.model, weights, self.train.weights[row], torch.Generator(), restarts=1)

    def nearest(self, weights: Weights, k: int = 3) -> Neighbours:
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
_PROBES = 200  # validation images on which behaviour is compared
PERMUTATIONS = 999


def error_overlap(wrong_a: Bool[Tensor, "n images"], wrong_b: Bool[Tensor, "m images"]) -> Float[Tensor, "n m"]:
    """Intersection over union in [0, 1] of error sets, [n, m] for bool [n, images] and [m, images] (Zeng et al. 2025)."""
    a, b = wrong_a.float(), wrong_b.float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp(min=1)


def behaviour(model: Model, weights: Weights, images: Images) -> Float[Tensor, "n bc"]:
    """Class probabilities [n, images * classes] of each network, one image after the other."""
    return logits_of(model, weights, images).softmax(-1).flatten(1)


@dataclass(frozen=True)
class Embeddings:
    """Networks as points: standardised canonical weights [n, p], and `behaviour` on the probe images [n, images * classes]."""

    weights: Weights
    behaviour: Float[Tensor, "n bc"]


@dataclass(frozen=True)
class ReferenceSet:
    """One task's zoo, against which samples are evaluated. Distances are between standardised canonical weights."""

    task: Task
    around: Neighbourhood  # the training networks
    training: Embeddings
    held_out: Embeddings
    scores: Scores  # of the training networks on the test images
    radius: float  # root mean square distance of a training network from their mean
    held_out_distance: float  # mean distance of a held-out network to its nearest training network

    @classmethod
    def of(cls, task: Task, train: Zoo, held_out: Zoo, space: WeightSpace, aligner: Aligner | None = None) -> ReferenceSet:
        """One task's training and held-out networks, measured.

        Args:
            task: with its images.
            train: training networks of this task, at least 2, and maybe others; in canonical form.
            held_out: networks of other runs, at least 1 of this task; in canonical form.
            space: in whose units distances are measured.
            aligner: what gave the zoos that form; samples are brought to it before they are measured.

        Raises:
            ValueError: if the zoos have too few networks of the task, or some that are copies: of each other, or held out
                and near copies of training networks.
        """
        for zoo, least in ((train, 2), (held_out, 1)):
            if (zoo.table["task"] == task.name).sum() < least:
                needs = f"a comparison needs 2 training networks and a held-out one of task {task.name!r}"
                raise ValueError(f"{needs}; the zoo is of {', '.join(map(repr, zoo.tasks)) or 'no task'}")
        train = train.task(task.name)
        around = Neighbourhood(train, space, aligner)
        held = around.canonical(held_out.task(task.name).weights)  # once more, as every sample will be
        training, unseen = (_embeddings(around, task, weights) for weights in (train.weights, held))
        neighbours = around.nearest(held)
        _refuse_copies(task.name, training.weights, unseen.weights, neighbours)
        radius = ((training.weights - training.weights.mean(0)).square().sum() / (len(train) - 1)).sqrt()
        scores = score(train.model, train.weights, task.test.x, task.test.y)
        return cls(task, around, training, unseen, scores, float(radius), float(neighbours.distance[:, 0].mean()))


def _twin_distance(rows: Weights) -> Float[Tensor, " n"]:
    """Each row's distance [n] to the nearest other row; infinite for a row alone."""
    return distances(rows, rows).fill_diagonal_(math.inf).min(1).values


def _refuse_copies(task: str, training: Tensor, held_out: Tensor, neighbours: Neighbours) -> None:
    """Nothing, or ValueError: copies in a reference set would fool whoever is measured by it, and hide whoever copies."""
    for name, apart in (("training", _twin_distance(training)), ("held-out", _twin_distance(held_out))):
        copies = int((apart <= SAME * apart.median()).sum()) if len(apart) > 1 else 0
        if copies:
            raise ValueError(
                f"{copies} of the {len(apart)} {name} networks of task {task!r} are copies of one another; keep one of each"
            )
    nearest, row = neighbours.distance[:, 0], neighbours.row[:, 0]
    # a training network's own neighbour tells how close networks come that were trained apart
    leaked = int((nearest < TWIN * _twin_distance(training)[row]).sum())
    if leaked:
        raise ValueError(
            f"{leaked} of the {len(nearest)} held-out networks of task {task!r} are copies or near copies of training ones; "
            "hold out whole runs, so that no run is on both sides"
        )


def _embeddings(around: Neighbourhood, task: Task, canonical: Tensor) -> Embeddings:
    probes = task.validation.x[:_PROBES]
    return Embeddings(around.space.encode(canonical), behaviour(around.train.model, canonical, probes))


@dataclass(frozen=True)
class Evaluation:
    """Samples of one method for one task: per-network numbers [n], and numbers about the set."""

    validation: Scores
    test: Scores
    canonical: Weights  # the samples as they were compared
    neighbours: Neighbours  # distances in units of a held-out network's
    overlap: Float[Tensor, " n"]  # of errors with the training network whose errors are most alike, in [0, 1]
    spread: float  # relative dispersion: 1 is the zoo's
    offset: float  # mean shift from the zoo's mean, in units of the zoo's radius
    p_weights: float  # of the two-sample test on weights, in (0, 1]
    p_behaviour: float  # of the two-sample test on behaviour, in (0, 1]
    twins: float  # median distance of a sample to the nearest other one, in the same units

    @property
    def nearest(self) -> Float[Tensor, " n"]:
        """Distances [n] to the nearest training network, 1 as a held-out network's."""
        return self.neighbours.distance[:, 0]

    @property
    def best(self) -> int:
        """Index of the network with the best validation accuracy."""
        return int(self.validation.accuracy.argmax())

    def measures(self) -> dict[str, float]:
        """One value for each of `MEASURES`."""
        accuracy = self.test.accuracy
        values: list = [accuracy.mean(), accuracy.median(), accuracy[self.best], self.spread, self.offset]
        values += [self.nearest.mean(), self.overlap.mean(), self.p_weights, self.p_behaviour]
        return {name: float(value) for name, value in zip(MEASURES, values, strict=True)}


def evaluate(weights: Weights, reference: ReferenceSet, against: Embeddings | None = None, seed: int = 0) -> Evaluation:
    """Everything we ask of the samples [n, p] for one task, after they were aligned as the zoo was.

    Args:
        weights: the samples [n, p].
        reference: the task's zoo.
        against: networks that the two-sample tests try to tell apart from the samples; by default the held-out ones.
        seed: of the tests' permutations.

    Raises:
        ValueError: if the samples are not finite rows of the zoo's length, or there are none.
    """
    task, around = reference.task, reference.around
    check_real(f"samples for {task.name!r}", weights, (around.train.layout.size,))
    validation, test = (score(around.train.model, weights, s.x, s.y) for s in (task.validation, task.test))
    canonical = around.canonical(weights)
    samples, against = _embeddings(around, task, canonical), against or reference.held_out
    x, rows = samples.weights, reference.training.weights
    spread = ((x - x.mean(0)).square().sum() / max(len(x) - 1, 1)).sqrt() / reference.radius
    offset = (x.mean(0) - rows.mean(0)).norm() / reference.radius
    nearest = around.nearest(canonical)
    neighbours = Neighbours(nearest.distance / reference.held_out_distance, nearest.row)
    twins = float(_twin_distance(x).median() / reference.held_out_distance)
    overlap = error_overlap(test.wrong, reference.scores.wrong).max(1).values
    _, p_weights = energy_test(x, against.weights, PERMUTATIONS, seeded(seed, 0))
    _, p_behaviour = energy_test(samples.behaviour, against.behaviour, PERMUTATIONS, seeded(seed, 1))
    return Evaluation(
        validation, test, canonical, neighbours, overlap, float(spread), float(offset), p_weights, p_behaviour, twins
    )


def check_names(names: Sequence[str]) -> None:
    """Nothing, for methods that a table can tell apart.

    Raises:
        ValueError: if there is none, two have one name, or one has the held-out networks' name.
    """
    twice = sorted({name for name in names if names.count(name) > 1 or name == HELD_OUT})
    if twice or not names:
        what_to_do = f"rename {', '.join(map(repr, twice))}" if twice else "there are none"
        raise ValueError(f"a table needs methods of different names, none of them {HELD_OUT!r}; {what_to_do}")


def compare(
    generators: Sequence[Generator],
    references: Mapping[str, ReferenceSet],
    contexts: Contexts,
    held_out: Zoo,
    n: int,
    seed: int,
) -> pd.DataFrame:
    """One row for each method and task, the held-out zoo first: `MEASURES` by name, and `accuracies` of each network on test.

    Every method is given the same contexts, one support set a task that it was not trained with. The two-sample tests of the
    held-out networks, which are equal to themselves, are against the training networks.

    Args:
        generators: fitted.
        references: by task.
        contexts: by task, of which the first is used.
        held_out: networks of every task in `references`.
        n: networks that each method samples for a task, at least 1.
        seed: of the samples; task number k has a stream of its own.

    Raises:
        ValueError: if two generators have one name.
    """
    check_names([generator.name for generator in generators])
    rows = []
    for number, (name, reference) in enumerate(references.items()):
        evaluations = {HELD_OUT: evaluate(held_out.task(name).weights, reference, reference.training)}
        for generator in generators:
            weights = generator.sample(n, contexts[name][0], seeded(seed, number))
            evaluations[generator.name] = evaluate(weights, reference)
        rows += [
            {"method": method, "task": name, **evaluation.measures(), "accuracies": evaluation.test.accuracy.tolist()}
            for method, evaluation in evaluations.items()
        ]
    return pd.DataFrame(rows)
