"""Has a generator learned to make networks, or does it hand out the ones it was shown? One call, one verdict a task.

The verdict follows from thresholds that are stated here, in this order:

| verdict | if |
|---|---|
| memorises | the median sample is within `COPY` of a training network, or has its errors (`SAME_ERRORS`) as no unseen one has |
| near copies | the median sample is within `NEAR` of a training network; the average of all of them is not, at about 0.7 |
| averages | the samples lie nearer to the zoo's mean than `NARROW` of a network's distance from it |
| too alike | the samples have less than `NARROW` of the zoo's spread, or the median one has a copy among them (`COPY`) |
| not the zoo's distribution | a two-sample test tells the samples from held-out networks, at `LEVEL` over the whole audit |
| indistinguishable here | none of these; a larger sample or another test might still tell them apart |

Distances are in units of a held-out network's, hidden units and scales aside. One real network again and again is too
alike, not an average: it lies where networks lie. The medians are over `LEAST` samples or more, the fewest between whose
smallest and largest the true median lies with 95 % confidence (1 - 2 / 2^6 = 0.97), and the two-sample tests need so many
samples and held-out networks that they can reject at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from flownlib.context import Contexts
from flownlib.encoders import WeightSpace
from flownlib.evaluation import HELD_OUT, PERMUTATIONS, Evaluation, ReferenceSet, check_names, error_overlap, evaluate
from flownlib.extensions.likelihood import latent_log_likelihood
from flownlib.generators import FlowGenerator, Generator
from flownlib.optimisation import seeded
from flownlib.scoring import Task
from flownlib.statistics import Interval, mean_interval, proportion_interval
from flownlib.symmetry import Aligner
from flownlib.zoo import Zoo

COPY, NEAR, NARROW, SAME_ERRORS, LEVEL = 0.05, 0.6, 0.8, 0.95, 0.05
LEAST = 6  # samples a task
VERDICTS = ("memorises", "near copies", "averages", "too alike", "not the zoo's distribution", "indistinguishable here")


class SplitZoo(Protocol):
    """A zoo in canonical form, split by seed, with what gave it that form (None: compare weights as they are)."""

    train: Zoo
    held_out: Zoo
    aligner: Aligner | None


@runtime_checkable
class HasLikelihood(Protocol):
    """A generator that can say how likely it finds a network."""

    def log_likelihood(self, weights: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Log-density in nats [n] of weights [n, p], or of their latents, under one context y [c]."""


@dataclass(frozen=True)
class Likelihoods:
    """Log-densities in nats of the training networks [n] and of held-out networks [m]."""

    training: Tensor
    held_out: Tensor

    @property
    def advantage(self) -> float:
        """How often a training network is found likelier than a held-out one: 0.5 = no more often than not."""
        likelier = self.training[:, None] - self.held_out[None]
        return float((likelier > 0).float().mean() + (likelier == 0).float().mean() / 2)


@dataclass(frozen=True)
class TaskAudit:
    """What was found for one task: the samples, held-out networks measured alike, and what they were measured against."""

    reference: ReferenceSet
    samples: Evaluation
    held_out: Evaluation
    level: float  # of each two-sample test
    likelihoods: Likelihoods | None = None

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        samples, most = self.samples, max(SAME_ERRORS, float(self.held_out.overlap.max()))
        if samples.nearest.median() < COPY or samples.overlap.median() > most:
            return VERDICTS[0]
        if samples.nearest.median() < NEAR:
            return VERDICTS[1]
        n = len(samples.canonical)
        # how far samples lie from the zoo's mean (root mean square), in units of the zoo's radius; 1 = as networks do
        if math.hypot(samples.spread * ((n - 1) / n) ** 0.5, samples.offset) < NARROW:
            return VERDICTS[2]
        if samples.spread < NARROW or samples.twins < COPY:
            return VERDICTS[3]
        return VERDICTS[4] if min(samples.p_weights, samples.p_behaviour) < self.level else VERDICTS[5]

    @property
    def training_overlap(self) -> Tensor:
        """Each training network's error overlap [n] with the most similar other one."""
        wrong = self.reference.scores.wrong
        return error_overlap(wrong, wrong).fill_diagonal_(0).max(1).values

    def intervals(self) -> dict[str, Interval]:
        """Intervals over the sampled networks, or over test images for the one network chosen by validation."""
        samples = self.samples
        right = int((~samples.test.wrong[samples.best]).sum())
        return {
            "test_accuracy_mean": mean_interval(samples.test.accuracy.tolist()),
            "test_accuracy_best_by_validation": proportion_interval(right, samples.test.wrong.shape[1]),
            "nearest_training_distance": mean_interval(samples.nearest.tolist()),
            "error_overlap": mean_interval(samples.overlap.tolist()),
        }

    def row(self) -> dict[str, float | str | Interval]:
        """The task in one line of the summary; intervals are over the sampled networks."""
        samples, held_out = self.samples, self.held_out
        measured = {
            "accuracy": mean_interval(samples.test.accuracy.tolist()),
            "held-out accuracy": mean_interval(held_out.test.accuracy.tolist()),
            "spread": samples.spread,
            "offset": samples.offset,
            "nearest": mean_interval(samples.nearest.tolist()),
            "error overlap": mean_interval(samples.overlap.tolist()),
            "held-out overlap": mean_interval(held_out.overlap.tolist()),
            "p weights": samples.p_weights,
            "p behaviour": samples.p_behaviour,
        }
        if self.likelihoods is not None:
            measured["training likelier"] = self.likelihoods.advantage
        return measured | {"verdict": self.verdict}


@dataclass(frozen=True)
class Audit:
    """What was found about a generator, by task."""

    name: str
    tasks: dict[str, TaskAudit]

    @property
    def verdict(self) -> str:
        """The gravest verdict of any task, the first in the order of `VERDICTS`."""
        return min((task.verdict for task in self.tasks.values()), key=VERDICTS.index)

    def summary(self) -> pd.DataFrame:
        """One row for each task: numbers rounded, intervals as text."""
        rows = {name: task.row() for name, task in self.tasks.items()}
        text = {name: {k: str(v) if isinstance(v, Interval) else v for k, v in row.items()} for name, row in rows.items()}
        return pd.DataFrame(text).T.infer_objects().rename_axis("task").round(3)


def audit(
    generator: Generator,
    zoo: SplitZoo,
    tasks: Mapping[str, Task],
    contexts: Contexts,
    n: int = 64,
    seed: int = 0,
    references: Mapping[str, ReferenceSet] | None = None,
    likelihood: bool = True,
) -> Audit:
    """Sample a fitted generator for every task and say what its networks are: see the table above for the verdicts.

    Args:
        generator: fitted to `zoo.train`. zoo: as from `shared.canonical_zoo`. tasks: by name, as in the zoo.
        contexts: of which the first draw of each task is given to the generator. n: samples a task.
        references: of these zoos, as from `shared.references`, to save the time of measuring them again.
        likelihood: ask a generator that has a log_likelihood for those of training and held-out networks.

    Raises:
        ValueError: if a task has no context or no network in the zoo, the samples are too few or not finite rows of its
            length, or held-out networks are copies of training networks.
    """
    for name, task in tasks.items():
        measured = references is None or name in references
        if name not in contexts or name not in zoo.train.tasks or name not in zoo.held_out.tasks or not measured:
            raise ValueError(f"an audit needs a context, training networks and held-out networks of {name!r}: one is missing")
        if task.name != name:
            raise ValueError(f"the task given as {name!r} calls itself {task.name!r}; the zoo has {zoo.train.tasks}")
    level = level_of(len(tasks))
    space, audited = WeightSpace.fit(zoo.train), {}
    for number, (name, task) in enumerate(tasks.items()):
        reference = references[name] if references else ReferenceSet.of(task, zoo.train, zoo.held_out, space, zoo.aligner)
        y = contexts[name][0]
        refuse_too_few(name, n, len(reference.held_out.weights), level)
        drawn = generator.sample(n, y, seeded(seed, number))
        refuse_too_few(name, len(drawn), len(reference.held_out.weights), level)
        samples = evaluate(drawn, reference, seed=seed)
        held_out = evaluate(zoo.held_out.task(name).weights, reference, reference.training, seed)
        asked = likelihood and isinstance(generator, FlowGenerator | HasLikelihood)
        likelihoods = likelihoods_of(generator, zoo, name, y, seeded(seed, number)) if asked else None
        audited[name] = TaskAudit(reference, samples, held_out, level, likelihoods)
    return Audit(generator.name, audited)


def level_of(tasks: int) -> float:
    """The level of each two-sample test, two a task: `LEVEL` is that of all of them together (Bonferroni).

    Raises:
        ValueError: for no task, or so many that no p-value of so few permutations is below it.
    """
    most = int(LEVEL * (PERMUTATIONS + 1) / 2)
    if not 1 <= tasks < most:
        raise ValueError(f"an audit is of 1 to {most - 1} tasks, not {tasks}; make it in parts")
    return LEVEL / (2 * tasks)


def refuse_too_few(task: str, n: int, held_out: int, level: float) -> None:
    """Refuse fewer samples than `LEAST`, or so few of both that the two-sample tests could not reject whatever they saw."""
    if n < LEAST:
        raise ValueError(f"an audit needs {LEAST} samples a task or more, and there are {n} for {task!r}")
    # the smallest p-value is that of the observed split among all; of equal halves, of the split and its mirror image
    smallest = (2 if n == held_out else 1) / math.comb(n + held_out, n)
    if smallest >= level:
        raise ValueError(
            f"{n} samples and {held_out} held-out networks of {task!r} are too few: no two-sample test can fall below "
            f"{level:.3g}, its smallest p-value is {smallest:.2g}; hold out more networks"
        )


def table_of(audits: Sequence[Audit]) -> pd.DataFrame:
    """One row for each method and task, the held-out networks first, as from `evaluation.compare`: `MEASURES` by name.

    Raises:
        ValueError: if two audits have one name, or there is none.
    """
    check_names([audited.name for audited in audits])
    judged = [(HELD_OUT, name, task.held_out, "") for name, task in audits[0].tasks.items()]
    judged += [(audited.name, name, task.samples, task.verdict) for audited in audits for name, task in audited.tasks.items()]
    return pd.DataFrame([{"method": m, "task": name, **j.measures(), "verdict": verdict} for m, name, j, verdict in judged])


def likelihoods_of(
    generator: FlowGenerator | HasLikelihood, zoo: SplitZoo, task: str, y: Tensor, probes: torch.Generator
) -> Likelihoods:
    """How likely a generator finds the networks of one task that it was shown, and those that it was not."""
    training, held_out = zoo.train.task(task).weights, zoo.held_out.task(task).weights
    of_flow = isinstance(generator, FlowGenerator)
    log_likelihood = partial(latent_log_likelihood, generator) if of_flow else generator.log_likelihood
    nats = log_likelihood(torch.cat([training, held_out]), y, probes)
    return Likelihoods(*nats.split([len(training), len(held_out)]))
