"""A zoo: many trained classifiers as one table of weights, collected by all cores and resumed where it was left."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from flownlib.harness.cache import address, cached
from flownlib.harness.folders import cache_root
from flownlib.networks import Classifier, classifier
from flownlib.optimisation import seeded
from flownlib.scoring import Task, score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import initial_weights, minibatch_orders
from flownlib.speed.workers import default_workers, one_thread, share_jobs
from flownlib.speed.zoo_settings import LEAST_DATA, ZooSettings
from flownlib.tasks import load_task
from flownlib.weights import Artifact
from flownlib.zoo import Zoo

log = logging.getLogger(__name__)
SHARED_SEED = 1_000_000


def collect(settings: ZooSettings, workers: int | None = None, progress: bool = True) -> Zoo:
    """Train the zoo, or read what of it is cached; the same numbers whatever the number of workers.

    Each finished shard is stored at once, so an interrupted collection goes on where it was. Networks that diverged are
    marked in the table, and a warning counts them.

    Raises:
        ValueError: for settings that cannot be here, or images that the classifier cannot read.
    """
    settings = settings.checked()
    draw_images(settings)
    jobs = [(settings, task, seeds) for task, seeds in settings.shards()]
    workers = min(workers or default_workers(), len(jobs)) if settings.device == "cpu" else 1
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
    return Zoo(torch.cat([part.weights for part in parts]).to(settings.device), table, parts[0].model, asdict(settings))


def draw_images(settings: ZooSettings) -> None:
    """Draw every task's images, once for all workers.

    Raises:
        ValueError: if they are not on disk, or not what the classifier reads.
    """
    model = classifier(settings.classifier)
    for name in settings.tasks:
        task = load_task(name, settings.sizes)
        found, wanted = (*task.train.x.shape[1:], task.num_classes), (*model.image_shape, model.num_classes)
        if found != wanted:
            raise ValueError(
                f"{model.name} reads images and classes {wanted}, and task {name} has {found}: name another classifier"
            )


def collect_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    """Train, evaluate and store one shard, or read it from the cache. The settings must be `checked`."""
    return cached(build=lambda: _train_shard(settings, task_name, seeds), **_shard_key(settings, task_name, seeds))


def _shard_key(settings: ZooSettings, task: str, seeds: tuple[int, ...]) -> dict:
    inputs = {name: value for name, value in asdict(settings).items() if name not in ("tasks", "seed", "networks", "device")}
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
        "data_fraction": [LEAST_DATA + (1 - LEAST_DATA) * c for _, _, c in draws],
    }


def _train_shard(settings: ZooSettings, task_name: str, seeds: tuple[int, ...]) -> Artifact:
    task, model, shared_seed = (
        load_task(task_name, settings.sizes).to(settings.device),
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
    checkpoints = train_many(model, starts.to(settings.device), task.train, orders, rate, record, decay, settings.backend)
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
        return list(range(steps - settings.networks + 1, steps + 1))
    if settings.kind == "trajectories":
        return [round(epoch * steps / settings.training.epochs) for epoch in range(settings.training.epochs + 1)]
    return [steps]


def _scored(table: pd.DataFrame, model: Classifier, weights: Tensor, task: Task, backend: str) -> pd.DataFrame:
    """The table with accuracy and loss on every split, and whether a network diverged: it is worse than a uniform guess."""
    for name in ("train", "validation", "test"):
        split = getattr(task, name)
        scores = score(model, weights, split.x, split.y, backend, allow_diverged=True)
        table[f"{name}_accuracy"], table[f"{name}_loss"] = scores.accuracy.tolist(), scores.loss.tolist()
    guess = math.log(task.num_classes) + 0.1  # nats; a fresh network lies a little above the logarithm
    table["diverged"] = ~(weights.isfinite().all(1).cpu().numpy() & (table["train_loss"] < guess).to_numpy())
    return table
