"""A zoo: many trained classifiers as one table of weights, collected by all cores and resumed where it was left."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from flownlib.harness.cache import address, cache_root, cached
from flownlib.networks import Classifier, classifier
from flownlib.optimisation import seeded
from flownlib.scoring import Task, score
from flownlib.speed import backends
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, initial_weights, minibatch_orders
from flownlib.speed.workers import default_workers, one_thread, share_jobs
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes
from flownlib.weights import Artifact
from flownlib.zoo import Zoo

log = logging.getLogger(__name__)
# what differs between the networks of one task
KINDS = {
    "independent": "the seed: initialisation and minibatch order",
    "shared": "the minibatch order only; all start from one initialisation",
    "one_run": "the step: the last checkpoints of a single run (p-diff's setting)",
    "varied": "the seed, the learning rate, the weight decay and the share of the images",
    "trajectories": "the seed and the epoch: every run from its initialisation to its end",
}
SHARD = 16  # networks trained together; also what an interrupted collection loses at most, per worker
SHARED_SEED = 1_000_000


@dataclass(frozen=True)
class ZooSettings:
    """What to collect: `networks` runs for each task, or for "one_run" that many checkpoints of one run's last steps."""

    tasks: tuple[str, ...]
    networks: int
    kind: str = "independent"  # one of KINDS
    classifier: str = "cnn_small"
    sizes: SplitSizes = SplitSizes()
    training: Training = Training()
    seed: int = 0
    backend: str = "auto"  # who trains: "lanes", "torch", or the faster one here
    minibatches: str = "own"  # or "shared": one order for all networks of a task, which is faster

    def checked(self) -> ZooSettings:
        """These settings with the backend that "auto" stands for here.

        Raises:
            ValueError: for an unknown kind, classifier, backend or way of drawing minibatches, or less than one network.
        """
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind of zoo {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.minibatches not in ("own", "shared"):
            raise ValueError(f'minibatches are "own" or "shared", not {self.minibatches!r}')
        if self.minibatches == "shared" and self.kind != "independent":
            raise ValueError(f"minibatches can be shared among independent networks only, not in a zoo of kind {self.kind!r}")
        if self.networks < 1:
            raise ValueError(f"a zoo needs at least one network a task, not {self.networks}")
        return replace(self, backend=backends.choose(self.backend, classifier(self.classifier), torch.float32))

    @classmethod
    def from_json(cls, values: dict) -> ZooSettings:
        """The inverse of `dataclasses.asdict`; what is left out takes its default.

        Raises:
            ValueError: for a name that is not a setting.
        """
        nested = {"sizes": SplitSizes, "training": Training}
        try:
            parts = {name: kind(**values[name]) for name, kind in nested.items() if name in values}
            return cls(**(values | parts | {"tasks": tuple(values["tasks"])}))
        except (TypeError, KeyError) as error:
            raise ValueError(f"these are not the settings of a zoo: {error}") from None

    def shards(self) -> list[tuple[str, tuple[int, ...]]]:
        """(task, seeds) of each unit of work."""
        first = self.seed * 100_000
        seeds = [first] if self.kind == "one_run" else range(first, first + self.networks)
        parts = [tuple(seeds[i : i + SHARD]) for i in range(0, len(seeds), SHARD)]
        return [(task, part) for task in self.tasks for part in parts]


def collect(settings: ZooSettings, workers: int | None = None, progress: bool = True) -> Zoo:
    """Train the zoo, or read what of it is cached; the same numbers whatever the number of workers.

    Each finished shard is stored at once, so an interrupted collection goes on where it was. Networks that diverged are
    marked in the table, and a warning counts them.

    Raises:
        ValueError: for settings that cannot be, or an unknown task.
    """
    settings = settings.checked()
    for task in settings.tasks:
        load_task(task, settings.sizes)  # refuses unknown names, and draws the images once for all workers
    jobs = [(settings, task, seeds) for task, seeds in settings.shards()]
    workers = min(workers or default_workers(), len(jobs))
    bar = tqdm(total=len(jobs), desc=f"zoo ({settings.kind})", disable=not progress)
    missing = [job for job in jobs if not is_cached(*job)]
    bar.update(len(jobs) - len(missing))
    with one_thread():
        if workers > 1 and len(missing) > 1:
            share_jobs(collect_shard, missing, workers, bar)
        parts = []
        for job in jobs:
            parts.append(Zoo.from_artifact(collect_shard(*job)))
            bar.update(int(bar.n < len(jobs)))
    bar.close()
    table = pd.concat([part.table for part in parts], ignore_index=True)
    if table["diverged"].any():
        log.warning("%d of %d networks diverged; the table's column `diverged` marks them", table["diverged"].sum(), len(table))
    return Zoo(torch.cat([part.weights for part in parts]), table, parts[0].model, asdict(settings))


def collect_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    """Train, evaluate and store one shard, or read it from the cache. The settings must be `checked`."""
    return cached(build=lambda: _train_shard(settings, task_name, seeds), **_shard_key(settings, task_name, seeds))


def _shard_key(settings: ZooSettings, task: str, seeds: tuple[int, ...]) -> dict:
    inputs = {name: value for name, value in asdict(settings).items() if name not in ("tasks", "seed", "networks")}
    if settings.kind == "one_run":
        inputs["checkpoints"] = settings.networks
    if settings.kind == "shared" or settings.minibatches == "shared":
        inputs["shared_seed"] = SHARED_SEED + settings.seed
    return {"stage": "zoo-shard", "settings": inputs | {"task": task, "seeds": list(seeds)}}


def is_cached(settings: ZooSettings, task: str, seeds: tuple[int, ...]) -> bool:
    """Whether this shard has been collected."""
    return (cache_root() / address(**_shard_key(settings, task, seeds), module=__name__)).exists()


def hyper_parameters(settings: ZooSettings, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Each network's learning rate, weight decay and share of the images; the seed decides where the kind varies them."""
    training, count = settings.training, len(seeds)
    if settings.kind != "varied":
        values = {"learning_rate": training.learning_rate, "weight_decay": training.weight_decay, "data_fraction": 1.0}
        return {name: [value] * count for name, value in values.items()}
    draws = [torch.rand(3, generator=seeded(seed, 4)).tolist() for seed in seeds]
    return {
        "learning_rate": [training.learning_rate * 10 ** (2 * a - 1) for a, _, _ in draws],  # a tenth to ten times
        "weight_decay": [10 ** (3 * b - 5) for _, b, _ in draws],  # 1e-5 to 1e-2
        "data_fraction": [0.2 + 0.8 * c for _, _, c in draws],
    }


def _train_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    task, model, shared_seed = (
        load_task(task_name, settings.sizes),
        classifier(settings.classifier),
        SHARED_SEED + settings.seed,
    )
    training, chosen = settings.training, hyper_parameters(settings, seeds)
    starts = initial_weights(model, [shared_seed] * len(seeds) if settings.kind == "shared" else seeds)
    if settings.minibatches == "shared":
        orders = minibatch_orders([shared_seed], len(task.train), training)
    else:
        orders = minibatch_orders(seeds, len(task.train), training, chosen["data_fraction"])
    last, record = orders.shape[1], _recorded(settings, orders.shape[1])
    rate, decay = torch.tensor(chosen["learning_rate"]), torch.tensor(chosen["weight_decay"])
    checkpoints = train_many(model, starts, task.train, orders, rate, record, decay, settings.backend)
    weights, count = checkpoints.flatten(0, 1), len(checkpoints)
    table = {
        "task": [task_name] * len(weights),
        "seed": list(seeds) * count,
        "kind": [settings.kind] * len(weights),
        "step": [step for step in record for _ in seeds],
        "epoch": [step * training.epochs / last for step in record for _ in seeds],
        **{name: values * count for name, values in chosen.items()},
        "backend": [settings.backend] * len(weights),
    }
    return Zoo(
        weights, _scored(pd.DataFrame(table), model, weights, task, settings.backend), model, asdict(settings)
    ).as_artifact()


def _recorded(settings: ZooSettings, steps: int) -> list[int]:
    """The steps whose weights are kept."""
    if settings.kind == "one_run":
        if settings.networks > steps:
            raise ValueError(f"one run of {steps} steps has no {settings.networks} checkpoints")
        return list(range(steps - settings.networks + 1, steps + 1))
    if settings.kind == "trajectories":
        return [round(epoch * steps / settings.training.epochs) for epoch in range(settings.training.epochs + 1)]
    return [steps]


def _scored(table: pd.DataFrame, model: Classifier, weights: Tensor, task: Task, backend: str) -> pd.DataFrame:
    """The table with accuracy and loss on every split, and whether a network diverged: it is worse than a uniform guess."""
    for name in ("train", "validation", "test"):
        split = getattr(task, name)
        scores = score(model, weights, split.x, split.y, backend)
        table[f"{name}_accuracy"], table[f"{name}_loss"] = scores.accuracy.tolist(), scores.loss.tolist()
    guess = math.log(task.num_classes) + 0.1  # nats; a fresh network lies a little above the logarithm
    table["diverged"] = ~(weights.isfinite().all(1).numpy() & (table["train_loss"] < guess).to_numpy())
    return table
