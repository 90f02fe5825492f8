"""How fast networks are generated, against training them from scratch to the accuracy that they have."""

from __future__ import annotations

import argparse
import time

import torch

from flownlib.benchmarks.collection import timed_zoo
from flownlib.benchmarks.measurements import Measurements, usable_backends
from flownlib.chapters import shared
from flownlib.generators import FlowGenerator
from flownlib.harness import profiles
from flownlib.networks import cnn_small
from flownlib.scoring import score
from flownlib.statistics import mean_interval
from flownlib.tasks import load_task


def sampling_rate(flow: FlowGenerator, y: torch.Tensor, n: int, repeats: int) -> float:
    """Networks a second of one thread: noise, four Euler steps and the decoder; n at once, `repeats` times."""
    generator, start = torch.Generator().manual_seed(0), time.perf_counter()
    for _ in range(repeats):
        flow.sample(n, y, generator)
    return n * repeats / (time.perf_counter() - start)


def accuracies_of(flow: FlowGenerator, y: torch.Tensor) -> list[float]:
    """Test accuracies of 64 generated networks of the task "latin"."""
    weights, test = flow.sample(64, y, torch.Generator().manual_seed(1)), load_task("latin").test
    return score(cnn_small(), weights, test.x, test.y).accuracy.tolist()


def generation(options: argparse.Namespace) -> list[dict]:
    """Networks a second by the latent flow, and by training with each backend; their ratio, and both accuracies."""
    settings = profiles.load("tutorial")
    tasks = {"latin": shared.zoo_tasks(settings)["latin"]}
    flow, networks = shared.latent_flow(settings, 0), (options.networks or [128])[0]
    features = shared.image_features(shared.zoo_tasks(settings))
    y = shared.support_contexts(features, tasks, settings.support_per_class, 1, 1_000)["latin"][0]
    generated: dict[int, list[float]] = {1: [], 1000: []}
    trained: dict[str, list[float]] = {backend: [] for backend in usable_backends()}
    accuracies = []
    for seed in range(options.rounds):
        for at_once, rates in generated.items():
            rates.append(sampling_rate(flow, y, at_once, 200 if at_once == 1 else 5))
        for backend, rates in trained.items():
            seconds, zoo = timed_zoo(networks, 1, backend, seed)
            rates.append(networks / seconds)
        accuracies.append(float(zoo.table["test_accuracy"].mean()))
    measured, seeds = Measurements(), range(options.rounds)
    for backend, rates in trained.items():
        measured.add("networks_per_second", "training", mean_interval(rates), seeds, backend=backend, at_once=networks)
    for at_once, rates in generated.items():
        measured.add("networks_per_second", "latent_flow", mean_interval(rates), seeds, at_once=at_once)
        for backend, others in trained.items():
            ratio = mean_interval([a / b for a, b in zip(rates, others, strict=True)])
            measured.add("speedup", "latent_flow", ratio, seeds, at_once=at_once, over=backend)
    measured.add("test_accuracy", "training", mean_interval(accuracies), seeds)
    measured.add("test_accuracy", "latent_flow", mean_interval(accuracies_of(flow, y)))
    return measured
