"""A zoo: many trained classifiers as one table of weights, collected by all cores and resumed where it was left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

import flownlib.classifiers as classifiers
import flownlib.layout as layout_module
import flownlib.training as training_module
from flownlib.artifacts import Artifact, ArtifactError, address, cache_root, cached, load_artifact, save_artifact
from flownlib.classifiers import Classifier, classifier, score
from flownlib.layout import Layout
from flownlib.tasks import SplitSizes, glyphs, load_task
from flownlib.tasks import base as tasks_base
from flownlib.training import Training, initial_weights, minibatch_orders, train_many

INITIALISATIONS = ("independent", "shared", "one_run")
SHARD = 16  # networks trained together; also what an interrupted collection loses at most, per worker
SHARED_SEED = 1_000_000


@dataclass(frozen=True)
class Zoo:
    """Weights float32 [n, p], a table with one row a network, and the layout of the p numbers."""

    weights: Tensor
    table: pd.DataFrame
    model: Classifier
    settings: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def layout(self) -> Layout:
        """Where each tensor lies in a row."""
        return self.model.layout

    @property
    def tasks(self) -> list[str]:
        """Task names in order of first appearance."""
        return list(dict.fromkeys(self.table["task"]))

    def select(self, mask: Sequence[bool] | pd.Series) -> Zoo:
        """The networks where the mask holds."""
        rows = torch.tensor(pd.Series(mask).to_numpy(dtype=bool))
        return replace(self, weights=self.weights[rows], table=self.table[rows.numpy()].reset_index(drop=True))

    def task(self, name: str) -> Zoo:
        """The networks of one task."""
        return self.select(self.table["task"] == name)

    def split(self, held_out: int) -> tuple[Zoo, Zoo]:
        """(training, held-out): the last `held_out` seeds of each task are held out, with all their checkpoints.

        Raises:
            ValueError: if a task would have no training seed left.
        """
        rank = self.table.groupby("task")["seed"].rank(method="dense", ascending=False)
        if held_out >= self.table.groupby("task")["seed"].nunique().min():
            raise ValueError(f"cannot hold out {held_out} seeds a task: some task has no more than that")
        return self.select(rank > held_out), self.select(rank <= held_out)

    def with_weights(self, weights: Tensor) -> Zoo:
        """The same rows with other weights, e.g. aligned ones."""
        return replace(self, weights=weights)

    def save(self, path: Path | str) -> None:
        """Write a folder with safetensors and JSON, all or nothing."""
        save_artifact(path, self.as_artifact())

    @classmethod
    def load(cls, path: Path | str) -> Zoo:
        """Read what `save` wrote.

        Raises:
            ArtifactError: if the folder is missing, damaged or not a zoo.
        """
        return cls.from_artifact(load_artifact(path), path)

    def as_artifact(self) -> Artifact:
        """The zoo as tensors and JSON."""
        meta = {
            "table": self.table.to_dict(orient="list"),
            "classifier": self.model.name,
            "layout": self.layout.as_json(),
            "settings": self.settings,
        }
        return Artifact({"weights": self.weights}, meta)

    @classmethod
    def from_artifact(cls, artifact: Artifact, source: Path | str = "the artefact") -> Zoo:
        """The inverse of `as_artifact`."""
        meta = artifact.meta
        if not {"table", "classifier", "layout"} <= meta.keys():
            raise ArtifactError(f"{source} is not a zoo: it has no table, classifier or layout.")
        model = classifier(meta["classifier"])
        if Layout.from_json(meta["layout"]) != model.layout:
            raise ArtifactError(f"{source} stores another layout than {model.name} has today; collect the zoo again.")
        return cls(artifact.tensors["weights"], pd.DataFrame(meta["table"]), model, meta["settings"])


@dataclass(frozen=True)
class ZooSettings:
    """What to collect: `networks` seeds for each task, or for "one_run" that many checkpoints of one seed's last steps."""

    tasks: tuple[str, ...]
    networks: int
    initialisation: str = "independent"
    classifier: str = "cnn_small"
    sizes: SplitSizes = SplitSizes()
    training: Training = Training()
    seed: int = 0

    def shards(self) -> list[tuple[str, tuple[int, ...]]]:
        """(task, seeds) of each unit of work."""
        first = self.seed * 100_000
        seeds = [first] if self.initialisation == "one_run" else range(first, first + self.networks)
        parts = [tuple(seeds[i : i + SHARD]) for i in range(0, len(seeds), SHARD)]
        return [(task, part) for task in self.tasks for part in parts]


def collect(settings: ZooSettings, workers: int | None = None, progress: bool = True) -> Zoo:
    """Train the zoo, or read what of it is cached; the same numbers whatever the number of workers.

    Each finished shard is stored at once, so an interrupted collection goes on where it was.

    Raises:
        ValueError: for an unknown initialisation, classifier or task.
    """
    if settings.initialisation not in INITIALISATIONS:
        raise ValueError(f"there is no initialisation {settings.initialisation!r}; choose one of {', '.join(INITIALISATIONS)}")
    model = classifier(settings.classifier)
    for task in settings.tasks:
        load_task(task, settings.sizes)  # refuses unknown names, and draws the images once for all workers
    shards = settings.shards()
    jobs = [(settings, task, seeds) for task, seeds in shards]
    workers = min(workers or default_workers(), len(jobs))
    bar = tqdm(total=len(jobs), desc=f"zoo ({settings.initialisation})", disable=not progress)
    if workers > 1 and not all(_is_cached(*job) for job in jobs):
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            for done in as_completed([pool.submit(collect_shard, *job) for job in jobs]):
                done.result()
                bar.update()
    parts = [Zoo.from_artifact(collect_shard(*job)) for job in jobs]
    bar.update(len(jobs) - bar.n)
    bar.close()
    table = pd.concat([part.table for part in parts], ignore_index=True)
    return Zoo(torch.cat([part.weights for part in parts]), table, model, asdict(settings))


def default_workers() -> int:
    """One worker for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    """Train, evaluate and store one shard, or read it from the cache."""
    return cached(build=lambda: _train_shard(settings, task_name, seeds), **_shard_key(settings, task_name, seeds))


def _shard_key(settings: ZooSettings, task: str, seeds: tuple[int, ...]) -> dict:
    inputs = {name: value for name, value in asdict(settings).items() if name not in ("tasks", "seed", "networks")}
    if settings.initialisation == "one_run":
        inputs["checkpoints"] = settings.networks
    code = (classifiers, layout_module, training_module, tasks_base, glyphs)
    return {"stage": "zoo-shard", "settings": inputs | {"task": task, "seeds": list(seeds)}, "code": code}


def _is_cached(settings: ZooSettings, task: str, seeds: tuple[int, ...]) -> bool:
    return (cache_root() / address(**_shard_key(settings, task, seeds))).exists()


def _train_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    task, model = load_task(task_name, settings.sizes), classifier(settings.classifier)
    shared = settings.initialisation == "shared"
    starts = initial_weights(model, [SHARED_SEED + settings.seed] * len(seeds) if shared else seeds)
    orders = minibatch_orders(seeds, len(task.train), settings.training)
    last = orders.shape[1]
    record = range(last - settings.networks + 1, last + 1) if settings.initialisation == "one_run" else [last]
    checkpoints = train_many(model, starts, task.train, orders, settings.training.learning_rate, record)
    weights = checkpoints.flatten(0, 1)
    table = {
        "task": [task_name] * len(weights),
        "seed": list(seeds) * len(checkpoints),
        "initialisation": [settings.initialisation] * len(weights),
        "step": [step for step in record for _ in seeds],
        "epoch": [step * settings.training.epochs / last for step in record for _ in seeds],
    }
    for name in ("train", "validation", "test"):
        scores = score(model, weights, getattr(task, name).x, getattr(task, name).y)
        table[f"{name}_accuracy"], table[f"{name}_loss"] = scores.accuracy.tolist(), scores.loss.tolist()
    return Zoo(weights, pd.DataFrame(table), model, asdict(settings)).as_artifact()
