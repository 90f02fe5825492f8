"""The study of notebook 04: every initialisation on every held-out alphabet and on real digits, for one training seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from flownlib.chapters import c04_initialisations
from flownlib.chapters.c04_initialisations import Curve
from flownlib.chapters.records import Records
from flownlib.extensions.adaptation import EPOCHS
from flownlib.extensions.episodes import FAR, Episodes
from flownlib.harness import results
from flownlib.harness.profiles import Profile
from flownlib.statistics import clustered_interval, mean_interval

RIVAL = "prototypical_centroid"
Values = Iterable[tuple[str, str, Tensor, dict]]  # quantity, method, one value an episode [m], setting


def distance_of(name: str) -> str:
    """How far a task is from the training characters: "far" for real handwriting, else "held_out_alphabet"."""
    return "far" if name == FAR else "held_out_alphabet"


def with_gain(method: str, accuracy: Tensor, other: Tensor | None, setting: dict, over: str) -> Iterator:
    """`Values` of an accuracy and, where there is another one, of the paired gain over it."""
    yield "test_accuracy", method, accuracy, setting
    if other is not None:
        yield "accuracy_gain", method, accuracy - other, setting | {"over": over}


def curve_values(curves: dict[str, Curve]) -> Iterator:
    """`Values` by epoch: accuracies, and their paired gains on the strongest rival if it is among the methods."""
    for method, curve in curves.items():
        for place, epoch in enumerate(EPOCHS):
            other = curves[RIVAL].accuracy[place] if RIVAL in curves and method != RIVAL else None
            yield from with_gain(method, curve.accuracy[place], other, {"epoch": epoch}, RIVAL)


def by_distance(values: Values, episodes: Episodes, **common: str | float) -> Records:
    """Records with one value an episode, by the distance of its task."""
    records = Records(**common)
    for quantity, method, found, setting in values:
        for distance in dict.fromkeys(map(distance_of, episodes.names)):
            group = [v for v, name in zip(found.tolist(), episodes.names, strict=True) if distance_of(name) == distance]
            records.add(quantity, method, group, distance=distance, **setting)
    return records


def task_records(curves: dict[str, Curve], episodes: Episodes, images: int) -> list[dict]:
    """Accuracy and gain at epoch 0 on each task, one value: the mean over its support draws."""
    records = Records(images=images)
    for quantity, method, values, setting in curve_values(curves):
        for task in dict.fromkeys(episodes.names) if setting["epoch"] == 0 else ():
            mean = values[[i for i, name in enumerate(episodes.names) if name == task]].double().mean().item()
            records.add(quantity, method, [mean], distance=distance_of(task), task=task, **setting)
    return records


def reward_records(settings: Profile, seed: int, data: c04_initialisations.Data, images: int) -> list[dict]:
    """Held-out accuracy before and after reward fine-tuning, on the first two support draws of every task."""
    places = [place for place in range(len(data.test)) if place % settings.ood_draws < 2]
    pool, records = data.pools.train, []
    flows = {
        "class_tokens_imitating": c04_initialisations.imitating_flow(settings, seed, pool).flow,
        "class_tokens": c04_initialisations.queried_flow(settings, seed, pool).flow,
    }
    for name, flow in flows.items():
        found = c04_initialisations.reward_gains(settings, seed, flow, data, places)
        for reward, accuracy in found.items():
            values = with_gain(name, accuracy, None if reward == "before" else found["before"], {"reward": reward}, "before")
            records += by_distance(values, data.test.at(places), images=images)
    return records


def write_live(
    curves: dict[str, dict[str, Curve]], rewarded: dict[str, Tensor], episodes: Episodes, run: tuple[str, int]
) -> Path:
    """Write one run's results, whose unit is the alphabet and, for digits, the support draw; returns the file's path.

    Args:
        curves: by classifier. rewarded: accuracies before and after reward fine-tuning, one a task. run: profile and seed.
    """
    raw, made = Records(images=50), []
    for reward in ("held_out", "same"):
        gain = (rewarded[reward] - rewarded["before"]).tolist()
        raw.add("accuracy_gain", "class_tokens_imitating", gain, distance="all", reward=reward, over="before")
    for classifier, found in curves.items():
        raw += by_distance(curve_values(found), episodes, images=50, classifier=classifier)
    alphabets = [name for name in episodes.names if distance_of(name) != "far"]
    for record in raw:
        values, near = record.pop("values"), record["setting"]["distance"] == "held_out_alphabet"
        interval = clustered_interval(values, alphabets) if near else mean_interval(values)
        made.append(results.record(**record, interval=interval, seeds=[run[1]]))
    return results.write("04_ood_finetuning", run[0], made)
