"""The study of notebook 04: every initialisation on every held-out alphabet and on real digits, for one training seed."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from flownlib.chapters import c04_initialisations
from flownlib.extensions.adaptation import EPOCHS
from flownlib.extensions.episodes import FAR, Episodes
from flownlib.harness.profiles import Profile

RIVAL = "prototypical_centroid"
DISTANCES = ("held_out_alphabet", "far")


def distance_of(name: str) -> str:
    """How far a task is from the training characters: "far" for real handwriting, else "held_out_alphabet"."""
    return "far" if name == FAR else "held_out_alphabet"


def by_distance(values: Tensor, episodes: Episodes) -> dict[str, list[float]]:
    """One value an episode [m], sorted into the two distances."""
    groups: dict[str, list[float]] = {distance: [] for distance in DISTANCES}
    for value, name in zip(values.tolist(), episodes.names, strict=True):
        groups[distance_of(name)].append(value)
    return groups


def by_task(values: Tensor, episodes: Episodes) -> dict[str, float]:
    """The mean of one value an episode [m] over each task's support draws."""
    groups = defaultdict(list)
    for value, name in zip(values.tolist(), episodes.names, strict=True):
        groups[name].append(value)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def curve_records(curves: dict[str, c04_initialisations.Curve], episodes: Episodes, images: int) -> list[dict]:
    """Accuracy by distance and epoch, and its paired gain on the strongest rival, one value an episode."""
    records = []
    for method, curve in curves.items():
        for place, epoch in enumerate(EPOCHS):
            gain = curve.accuracy[place] - curves[RIVAL].accuracy[place]
            for quantity, values in (("test_accuracy", curve.accuracy[place]), ("accuracy_gain", gain)):
                if quantity == "accuracy_gain" and method == RIVAL:
                    continue
                for distance, group in by_distance(values, episodes).items():
                    setting = {"distance": distance, "images": images, "epoch": epoch}
                    if quantity == "accuracy_gain":
                        setting["over"] = RIVAL
                    records.append({"quantity": quantity, "method": method, "setting": setting, "values": group})
    return records


def task_records(curves: dict[str, c04_initialisations.Curve], episodes: Episodes, images: int) -> list[dict]:
    """Accuracy and gain at epoch 0 on each task, one value: the mean over its support draws."""
    records = []
    for method, curve in curves.items():
        gain = curve.accuracy[0] - curves[RIVAL].accuracy[0]
        for quantity, values in (("test_accuracy", curve.accuracy[0]), ("accuracy_gain", gain)):
            if quantity == "accuracy_gain" and method == RIVAL:
                continue
            for task, mean in by_task(values, episodes).items():
                setting = {"distance": distance_of(task), "task": task, "images": images, "epoch": 0}
                if quantity == "accuracy_gain":
                    setting["over"] = RIVAL
                records.append({"quantity": quantity, "method": method, "setting": setting, "values": [mean]})
    return records


def reward_records(settings: Profile, seed: int, found: c04_initialisations.Data, images: int) -> list[dict]:
    """Held-out accuracy before and after reward fine-tuning, on the first two support draws of every task."""
    chosen = [place for place in range(len(found.test)) if place % settings.ood_draws < 2]
    episodes, pool, records = found.test.at(chosen), found.pools.train, []
    flows = {
        "class_tokens_imitating": c04_initialisations.imitating_flow(settings, seed, pool).flow,
        "class_tokens": c04_initialisations.queried_flow(settings, seed, pool).flow,
    }
    for name, flow in flows.items():
        accuracies = c04_initialisations.reward_gains(settings, seed, flow, found, chosen)
        for reward, values in accuracies.items():
            for quantity, numbers in (("test_accuracy", values), ("accuracy_gain", values - accuracies["before"])):
                if quantity == "accuracy_gain" and reward == "before":
                    continue
                for distance, group in by_distance(numbers, episodes).items():
                    setting = {"distance": distance, "images": images, "reward": reward}
                    if quantity == "accuracy_gain":
                        setting["over"] = "before"
                    records.append({"quantity": quantity, "method": name, "setting": setting, "values": group})
    return records
