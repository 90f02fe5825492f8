"""The study of the open problem: every start, as it is and trained further, on a large zoo of each kind."""

from __future__ import annotations

import time

import pandas as pd
import torch

from flownlib.chapters import shared as recipes
from flownlib.chapters.c03_study import fitted
from flownlib.chapters.c06_frontier import OURS, frontier_setup, further_trained, shares_of, starts
from flownlib.chapters.shared import KINDS, Setup
from flownlib.evaluation import MEASURES, judge
from flownlib.extensions.frontier import criteria, margin, points
from flownlib.generators import Generator
from flownlib.harness.settings import Profile
from flownlib.optimisation import seeded

HELD_OUT = "zoo_held_out"


def judged(start: Generator, made: Setup) -> list[dict]:
    """One row for each task and share of further training: `MEASURES`, and the processor seconds that a network took."""
    training, rows = recipes.zoo_settings(made.settings, made.seed).training, []
    n, shares = made.settings.samples_per_task, shares_of(start.name)
    for number, (name, reference) in enumerate(made.references.items()):
        generator, clock = seeded(made.seed, number), [time.process_time()]
        weights = start.sample(n, made.fresh[name][0], generator)
        clock.append(time.process_time())
        stages = further_trained(made.zoo.train.model, weights, made.tasks[name].train, training, shares, generator)
        clock.append(time.process_time())
        sampling, trained = clock[1] - clock[0], clock[2] - clock[1]
        for share, networks in zip(shares, stages, strict=True):
            seconds = (sampling + trained * share / shares[-1]) / n
            measures = judge(networks, reference).measures()
            rows.append({"method": start.name, "task": name, "share": share, "seconds_sample": seconds, **measures})
    return rows


def run_kind(made: Setup) -> list[dict]:
    """Raw records of one seed and one kind of zoo."""
    rows = []
    for name, reference in made.references.items():
        measures = judge(made.zoo.held_out.task(name).weights, reference, reference.training).measures()
        rows.append({"method": HELD_OUT, "task": name, "share": 1.0, **measures})
    seconds = {}
    for name, start in starts(made).items():
        generator, seconds[name] = fitted(start, made)
        rows += judged(generator, made)
    table = pd.DataFrame(rows)
    held_out = table[table["method"] == HELD_OUT].set_index("task")["test_accuracy_mean"]
    table["accuracy_gain"] = table["test_accuracy_mean"] - table["task"].map(held_out)
    records = []

    def add(quantity: str, method: str, share: float, values: list[float]) -> None:
        setting = {"zoo": made.kind, "share": share, "networks": made.settings.samples_per_task}
        records.append({"quantity": quantity, "method": method, "setting": setting, "values": values})

    for (method, share), part in table.groupby(["method", "share"], sort=False):
        for quantity in (*MEASURES, "accuracy_gain", *(["seconds_sample"] if method != HELD_OUT else [])):
            add(quantity, method, share, part[quantity].tolist())
    for (method, share), (met, ahead) in verdicts(table).items():
        add("criteria_met", method, share, [met])
        add("frontier_margin", method, share, [ahead])
    for method, value in seconds.items():
        add("seconds_fit", method, 0.0, [value])
    return records


def verdicts(table: pd.DataFrame) -> dict[tuple[str, float], tuple[float, float]]:
    """How many of the five criteria each of our methods meets, and its margin over the nulls, by method and share."""
    means = table.groupby(["method", "share"], sort=False).mean(numeric_only=True)
    values = {(q, method, share): float(row[q]) for (method, share), row in means.iterrows() for q in means.columns}
    every = points(values, [key for key in means.index if key[0] != HELD_OUT])
    nulls = [point for point in every if point.method not in OURS]
    overlap = values["error_overlap", HELD_OUT, 1.0]
    return {
        (point.method, point.share): (float(sum(criteria(point, overlap).values())), margin(point, nulls))
        for point in every
        if point.method in OURS
    }


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: every start and share of further training on both kinds of zoo."""
    torch.set_num_threads(1)
    return [record for kind in KINDS for record in run_kind(frontier_setup(settings, seed, kind))]
