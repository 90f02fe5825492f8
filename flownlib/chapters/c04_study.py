"""The study of notebook 04: every initialisation on every held-out alphabet and on real digits, for one training seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from flownlib.chapters import c04_initialisations
from flownlib.chapters.records import Records
from flownlib.extensions.adaptation import EPOCHS
from flownlib.extensions.episodes import FAR, Episodes
from flownlib.harness import results
from flownlib.harness.profiles import Profile
from flownlib.statistics import Interval, clustered_interval, mean_interval

RIVAL = "prototypical_centroid"


def distance_of(name: str) -> str:
    """How far a task is from the training characters: "far" for real handwriting, else "held_out_alphabet"."""
    return "far" if name == FAR else "held_out_alphabet"


def grouped(values: Tensor, labels: Iterable[str]) -> dict[str, list[float]]:
    """One value an episode [m], by the episodes' labels."""
    groups = defaultdict(list)
    for value, label in zip(values.tolist(), labels, strict=True):
        groups[label].append(value)
    return groups


def by_distance(values: Tensor, episodes: Episodes) -> dict[str, list[float]]:
    """One value an episode [m], by the distance of its task."""
    return grouped(values, map(distance_of, episodes.names))


def by_task(values: Tensor, episodes: Episodes) -> dict[str, float]:
    """The mean of one value an episode [m] over each task's support draws."""
    return {name: sum(group) / len(group) for name, group in grouped(values, episodes.names).items()}


def with_gain(accuracy: Tensor, other: Tensor, over: str, itself: bool) -> Iterator[tuple[str, Tensor, dict[str, str]]]:
    """(quantity, values [m], setting) of an accuracy and of its paired gain over another one, unless it is that one itself."""
    yield "test_accuracy", accuracy, {}
    if not itself:
        yield "accuracy_gain", accuracy - other, {"over": over}


def curve_records(curves: dict[str, c04_initialisations.Curve], episodes: Episodes, images: int) -> list[dict]:
    """Accuracy by distance and epoch, and its paired gain on the strongest rival, one value an episode."""
    records = Records(images=images)
    for method, curve in curves.items():
        for epoch, accuracy, rivals in zip(EPOCHS, curve.accuracy, curves[RIVAL].accuracy, strict=True):
            for quantity, values, over in with_gain(accuracy, rivals, RIVAL, method == RIVAL):
                for distance, group in by_distance(values, episodes).items():
                    records.add(quantity, method, group, distance=distance, epoch=epoch, **over)
    return records


def task_records(curves: dict[str, c04_initialisations.Curve], episodes: Episodes, images: int) -> list[dict]:
    """Accuracy and gain at epoch 0 on each task, one value: the mean over its support draws."""
    records = Records(images=images, epoch=0)
    for method, curve in curves.items():
        for quantity, values, over in with_gain(curve.accuracy[0], curves[RIVAL].accuracy[0], RIVAL, method == RIVAL):
            for task, mean in by_task(values, episodes).items():
                records.add(quantity, method, [mean], distance=distance_of(task), task=task, **over)
    return records


def reward_records(settings: Profile, seed: int, data: c04_initialisations.Data, images: int) -> list[dict]:
    """Held-out accuracy before and after reward fine-tuning, on the first two support draws of every task."""
    places = [place for place in range(len(data.test)) if place % settings.ood_draws < 2]
    episodes, pool, records = data.test.at(places), data.pools.train, Records(images=images)
    flows = {
        "class_tokens_imitating": c04_initialisations.imitating_flow(settings, seed, pool).flow,
        "class_tokens": c04_initialisations.queried_flow(settings, seed, pool).flow,
    }
    for name, flow in flows.items():
        accuracies = c04_initialisations.reward_gains(settings, seed, flow, data, places)
        for reward, accuracy in accuracies.items():
            for quantity, values, over in with_gain(accuracy, accuracies["before"], "before", reward == "before"):
                for distance, group in by_distance(values, episodes).items():
                    records.add(quantity, name, group, distance=distance, reward=reward, **over)
    return records


def write_live(
    curves: Mapping[str, dict[str, c04_initialisations.Curve]],
    rewarded: dict[str, Tensor],
    episodes: Episodes,
    profile: str,
    seed: int,
) -> Path:
    """Write one run's results, whose unit is the alphabet and, for digits, the support draw; returns the file's path.

    Args:
        curves: by classifier. rewarded: accuracies before and after reward fine-tuning, one value a task.
    """
    made = []

    def add(quantity: str, method: str, values: Tensor, **setting: str | float) -> None:
        for distance, group in by_distance(values, episodes).items():
            units = [name for name in episodes.names if distance_of(name) == distance]
            interval = mean_interval(group) if distance == "far" else clustered_interval(group, units)
            record(quantity, method, interval, distance=distance, **setting)

    def record(quantity: str, method: str, interval: Interval, **setting: str | float) -> None:
        made.append(results.record(quantity, method, {"images": 50, **setting}, interval, [seed]))

    for classifier, methods in curves.items():
        for method, curve in methods.items():
            for epoch, accuracy in zip(EPOCHS, curve.accuracy, strict=True):
                add("test_accuracy", method, accuracy, classifier=classifier, epoch=epoch)
            if RIVAL in methods:
                add("accuracy_gain", method, curve.accuracy[0] - methods[RIVAL].accuracy[0], epoch=0, over=RIVAL)
    for reward in ("held_out", "same"):
        gain = mean_interval((rewarded[reward] - rewarded["before"]).tolist())
        record("accuracy_gain", "class_tokens_imitating", gain, distance="all", reward=reward, over="before")
    return results.write("04_ood_finetuning", profile, made)
