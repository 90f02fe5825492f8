"""The study of encoders: held-out networks of every kind of zoo, encoded and decoded by every encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flownlib.chapters import shared as recipes
from flownlib.chapters.c02_encoders import COMPARED, REFINED, ZOOS, Fit, fit, fit_widths, split_zoo, width_zoos
from flownlib.encoders import Encoder, WeightSpace, reconstruct
from flownlib.extensions.graph_widths import at_width
from flownlib.harness.settings import Profile
from flownlib.scoring import Task, score
from flownlib.zoo import Zoo


@torch.no_grad()
def midpoints(encoder: Encoder, zoo: Zoo, tasks: Mapping[str, Task]) -> Tensor:
    """Test accuracy of what lies halfway, in latent space, between disjoint pairs of networks of one task [pairs]."""
    found = []
    for name in zoo.tasks:
        latents = encoder.encode(zoo.task(name).weights)
        half = len(latents) // 2
        decoded = encoder.decode((latents[:half] + latents[half : 2 * half]) / 2)
        found.append(score(zoo.model, decoded, tasks[name].test.x, tasks[name].test.y).accuracy)
    return torch.cat(found)


def compare_on(kind: str, split: tuple[Zoo, Zoo], fits: Mapping[str, Fit], settings: Profile) -> list[dict]:
    """Raw records of one (training, held-out) zoo by encoder: accuracy of held-out networks and of midpoints, R², size, seconds."""
    tasks, (train, held_out), records = recipes.zoo_tasks(settings), split, []

    def add(quantity: str, method: str, values: list[float], networks: str = "held_out") -> None:
        setting = {"zoo": kind, "networks": networks}
        records.append({"quantity": quantity, "method": method, "setting": setting, "values": values})

    add("test_accuracy_mean", "zoo_held_out", held_out.table["test_accuracy"].tolist())
    add("test_accuracy_mean", "weight_space", midpoints(WeightSpace.fit(train), held_out, tasks).tolist(), "midpoints")
    for name, made in fits.items():
        result = reconstruct(made.encoder, held_out, tasks, train.weights.mean(0))
        add("test_accuracy_mean", name, result.accuracy_after.tolist())
        add("accuracy_gain", name, (result.accuracy_after - result.accuracy_before).tolist())
        add("r2", name, [result.r2])
        add("test_accuracy_mean", name, midpoints(made.encoder, held_out, tasks).tolist(), "midpoints")
        add("seconds_fit", name, [made.seconds])
        add("numbers", name, [float(made.numbers)])
        add("latent_dim", name, [float(made.encoder.latent_dim)])
    return records


def compare(kinds: Mapping[str, Iterable[str]], seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: on each kind of zoo these encoders, fitted to it."""
    torch.set_num_threads(1)  # as many seconds as on one core
    return [
        record
        for kind, names in kinds.items()
        for record in compare_on(
            kind, split_zoo(settings, seed, kind), {name: fit(settings, seed, kind, name) for name in names}, settings
        )
    ]


def compare_widths(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: one graph encoder on perceptrons of three widths, of which it was trained on two."""
    torch.set_num_threads(1)
    zoos = width_zoos(settings, seed)
    made = fit_widths(settings, seed, zoos)
    return [
        record
        for kind, split in zoos.items()
        for record in compare_on(kind, split, {"vae_graph": replace(made, encoder=at_width(made.encoder, split[0]))}, settings)
    ]


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: every encoder of the comparison on every kind of zoo."""
    return compare(dict.fromkeys(ZOOS, COMPARED), seed, settings)


def run_refined(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: what was made to answer what the comparison left open, where it did; and graphs of several widths."""
    return compare(REFINED, seed, settings) + compare_widths(seed, settings)
