"""The study of encoders: held-out networks of every kind of zoo, encoded and decoded by every encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flownlib import classifiers, operations, recipes, recipes_encoders
from flownlib.encoders import Encoder, WeightSpace, reconstruct
from flownlib.profiles import Profile
from flownlib.recipes_encoders import COMPARED, REFINED, ZOOS, fit, split_zoo
from flownlib.scoring import score
from flownlib.tasks import Task, glyphs
from flownlib.training import loops, plan
from flownlib.zoo import Zoo

CODE = (classifiers, operations, plan, loops, glyphs, *recipes_encoders.CODE, recipes_encoders)


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


def compare_on(kind: str, names: Iterable[str], seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed and kind of zoo by encoder: accuracy of held-out networks and of midpoints, R², size, seconds."""
    torch.set_num_threads(1)  # as many seconds as on one core
    tasks, (train, held_out), records = recipes.zoo_tasks(settings), split_zoo(settings, seed, kind), []

    def add(quantity: str, method: str, values: list[float], networks: str = "held_out") -> None:
        setting = {"zoo": kind, "networks": networks}
        records.append({"quantity": quantity, "method": method, "setting": setting, "values": values})

    add("test_accuracy_mean", "zoo_held_out", held_out.table["test_accuracy"].tolist())
    add("test_accuracy_mean", "weight_space", midpoints(WeightSpace.fit(train), held_out, tasks).tolist(), "midpoints")
    for name in names:
        made = fit(settings, seed, kind, name)
        result = reconstruct(made.encoder, held_out, tasks, train.weights.mean(0))
        add("test_accuracy_mean", name, result.accuracy_after.tolist())
        add("accuracy_gain", name, (result.accuracy_after - result.accuracy_before).tolist())
        add("r2", name, [result.r2])
        add("test_accuracy_mean", name, midpoints(made.encoder, held_out, tasks).tolist(), "midpoints")
        add("seconds_fit", name, [made.seconds])
        add("numbers", name, [float(made.numbers)])
        add("latent_dim", name, [float(made.encoder.latent_dim)])
    return records


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: every encoder of the comparison on every kind of zoo."""
    return [record for kind in ZOOS for record in compare_on(kind, COMPARED, seed, settings)]


def run_refined(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: the encoders that were made to answer what the comparison left open, where it did."""
    return [record for kind, names in REFINED.items() for record in compare_on(kind, names, seed, settings)]
