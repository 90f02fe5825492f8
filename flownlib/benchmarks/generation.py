"""How fast networks are generated, against training them from scratch to the accuracy that they have."""

from __future__ import annotations

import argparse
import time

import torch

from flownlib.benchmarks.collection import timed_zoo
from flownlib.benchmarks.device import device_name
from flownlib.chapters import shared as recipes
from flownlib.generators import FlowGenerator
from flownlib.harness import profiles, results
from flownlib.networks import cnn_small
from flownlib.scoring import score
from flownlib.speed import backends
from flownlib.statistics import mean_interval
from flownlib.tasks import load_task


def sampling_rate(flow: FlowGenerator, y: torch.Tensor, n: int, repeats: int) -> float:
    """Networks a second of one thread: noise, four Euler steps and the decoder; n at once, `repeats` times."""
    generator, start = torch.Generator().manual_seed(0), time.perf_counter()
    for _ in range(repeats):
        flow.sample(n, y, generator)
    return n * repeats / (time.perf_counter() - start)


def accuracies_of(flow: FlowGenerator, y: torch.Tensor, n: int = 64) -> list[float]:
    """Test accuracies of n generated networks of the task "latin"."""
    weights, test = flow.sample(n, y, torch.Generator().manual_seed(1)), load_task("latin").test
    return score(cnn_small(), weights, test.x, test.y).accuracy.tolist()


def generation(options: argparse.Namespace) -> list[dict]:
    """Networks a second by the latent flow, and by training with each backend; their ratio, and both accuracies."""
    settings = profiles.load("tutorial")
    tasks = {"latin": recipes.zoo_tasks(settings)["latin"]}
    flow, networks = recipes.latent_flow(settings, 0), (options.networks or [128])[0]
    features = recipes.image_features(recipes.zoo_tasks(settings))
    y = recipes.support_contexts(features, tasks, settings.support_per_class, 1, 1_000)["latin"][0]
    compiled = backends.choose("auto", cnn_small(), torch.float32) == "lanes"
    trained: dict[str, list[float]] = {backend: [] for backend in (("lanes", "torch") if compiled else ("torch",))}
    generated: dict[int, list[float]] = {1: [], 1000: []}
    accuracies = []
    for round_ in range(options.rounds):
        for at_once, found in generated.items():
            found.append(sampling_rate(flow, y, at_once, 200 if at_once == 1 else 5))
        for backend, found in trained.items():
            seconds, zoo = timed_zoo(networks, 1, backend, round_)
            found.append(networks / seconds)
        accuracies.append(float(zoo.table["test_accuracy"].mean()))
    return records_of(generated, trained, accuracies, accuracies_of(flow, y), networks)


def records_of(
    generated: dict[int, list[float]],
    trained: dict[str, list[float]],
    accuracies: list[float],
    of_generated: list[float],
    networks: int,
) -> list[dict]:
    """Rates by how many networks are sampled at once and by who trains, their ratios, and what the networks are worth."""
    made, seeds, device = [], list(range(len(accuracies))), {"device": device_name("cpu")}
    for backend, found in trained.items():
        setting = {**device, "backend": backend, "at_once": networks}
        made.append(results.record("networks_per_second", "training", setting, mean_interval(found), seeds))
    for at_once, found in generated.items():
        setting = {**device, "at_once": at_once}
        made.append(results.record("networks_per_second", "latent_flow", setting, mean_interval(found), seeds))
        for backend, others in trained.items():
            ratio = mean_interval([a / b for a, b in zip(found, others, strict=True)])
            made.append(results.record("speedup", "latent_flow", {**setting, "over": backend}, ratio, seeds))
    made.append(results.record("test_accuracy", "training", device, mean_interval(accuracies), seeds))
    made.append(results.record("test_accuracy", "latent_flow", device, mean_interval(of_generated), [0]))
    for record in made:
        print(record["method"], record["quantity"], record["setting"], f"{record['value']:,.3f}")
    return made
