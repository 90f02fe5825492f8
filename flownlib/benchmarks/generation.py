"""How fast networks are generated, against training them from scratch to the accuracy that they have."""

from __future__ import annotations

import argparse
import time

import torch

from flownlib import backends, profiles, recipes, results
from flownlib.benchmarks.collection import timed_zoo
from flownlib.benchmarks.device import device_name
from flownlib.classifiers import cnn_small
from flownlib.generators import FlowGenerator
from flownlib.scoring import score
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
    rates = {"latent_flow, 1,000 at once": [], "latent_flow, one at a time": []}
    compiled = backends.choose("auto", cnn_small(), torch.float32) == "lanes"
    trained: dict[str, list[float]] = {backend: [] for backend in (("lanes", "torch") if compiled else ("torch",))}
    accuracies = []
    for round_ in range(options.rounds):
        rates["latent_flow, 1,000 at once"].append(sampling_rate(flow, y, 1000, 5))
        rates["latent_flow, one at a time"].append(sampling_rate(flow, y, 1, 200))
        for backend, found in trained.items():
            seconds, zoo = timed_zoo(networks, 1, backend, round_)
            found.append(networks / seconds)
        accuracies.append(float(zoo.table["test_accuracy"].mean()))
    made, seeds = [], list(range(options.rounds))
    setting = {"device": device_name("cpu"), "networks": networks}
    for name, found in rates.items():
        made.append(results.record("networks_per_second", name, setting, mean_interval(found), seeds))
        for backend, others in trained.items():
            ratio = mean_interval([a / b for a, b in zip(found, others, strict=True)])
            made.append(results.record("speedup", name, {**setting, "over": f"training by {backend}"}, ratio, seeds))
            print(f"{name}: {mean_interval(found).value:,.0f} networks/s, {ratio.value:,.0f} times training by {backend}")
    for backend, others in trained.items():
        made.append(results.record("networks_per_second", f"training by {backend}", setting, mean_interval(others), seeds))
    for name, found in {"training": mean_interval(accuracies), "latent_flow": mean_interval(accuracies_of(flow, y))}.items():
        made.append(results.record("test_accuracy", name, setting, found, seeds if name == "training" else [0]))
        print(f"test accuracy on latin, {name}: {found}")
    return made
