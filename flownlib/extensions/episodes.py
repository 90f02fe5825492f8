"""Episodes: small classification problems with a support set to learn from and query images to be judged on.

An episode's classes, its support images and its queries follow from a seed; every method meets the same episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.scoring import Task
from flownlib.tasks import glyph_pool, load_task
from flownlib.tasks.base import SplitSizes
from flownlib.tasks.glyphs import ALPHABETS, HELD_OUT, TRAINING_SCRIPTS, characters, without_lookalikes

FAR = "digits_handwritten"


@dataclass(frozen=True)
class Episodes:
    """m episodes of n classes, sorted by class.

    support_x [m, n * shot, c, h, w] and support_y [n * shot]; query_x [m, n * queries, c, h, w] and query_y
    [n * queries]; classes int64 [m, n], the pool's classes (or 0 … n - 1); names, one an episode: its unit for intervals.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    classes: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.support_x)

    @property
    def way(self) -> int:
        """Classes in each episode."""
        return self.classes.shape[1]

    def at(self, places: list[int]) -> Episodes:
        """Some of the episodes."""
        names = tuple(self.names[i] for i in places)
        return Episodes(self.support_x[places], self.support_y, self.query_x[places], self.query_y, self.classes[places], names)


def episodes_of(images: Tensor, classes: Tensor, shot: int, names: tuple[str, ...]) -> Episodes:
    """Episodes from images [m, n, shot + queries, c, h, w], of which the first `shot` of each class are the support."""
    support, query = images[:, :, :shot], images[:, :, shot:]
    labels = torch.arange(images.shape[1], device=images.device)
    support_y, query_y = labels.repeat_interleave(shot), labels.repeat_interleave(query.shape[2])
    return Episodes(support.flatten(1, 2), support_y, query.flatten(1, 2), query_y, classes, names)


def draw_episodes(
    pool: Tensor, count: int, way: int, shot: int, queries: int, generator: torch.Generator, classes: Tensor | None = None
) -> Episodes:
    """Random episodes from a pool of images [classes, k, c, h, w].

    Args:
        classes: int64 [count, way] to use, instead of `way` different ones at random.

    Raises:
        ValueError: if the pool has too few classes or images.
    """
    if len(pool) < way or pool.shape[1] < shot + queries:
        raise ValueError(
            f"episodes of {way} classes with {shot} + {queries} images need a pool that large, not {tuple(pool.shape[:2])}"
        )
    if classes is None:
        classes = torch.rand(count, len(pool), generator=generator).argsort(dim=1)[:, :way]
    images = torch.rand(count, way, pool.shape[1], generator=generator).argsort(dim=2)[:, :, : shot + queries]
    return episodes_of(pool[classes[:, :, None], images], classes, shot, tuple(f"episode_{i}" for i in range(count)))


def alphabet_episodes(tasks: list[Task], draws: int, shot: int, queries: int, seed: int) -> Episodes:
    """`draws` support sets for each task, from its training split; the queries are the task's first test images of each class.

    Raises:
        ValueError: if a class has fewer test images than `queries`.
    """
    parts, names = [], []
    for task in tasks:
        places = [(task.test.y == label).nonzero()[:queries, 0] for label in range(task.num_classes)]
        if min(map(len, places)) < queries:
            raise ValueError(f"task {task.name!r} has {min(map(len, places))} test images of a class, not {queries}")
        query = task.test.x[torch.stack(places)]
        for draw in range(draws):
            generator = torch.Generator().manual_seed(1000 * seed + draw)
            support = task.support(shot, generator).x.unflatten(0, (task.num_classes, shot))
            parts.append(torch.cat([support, query], dim=1))
            names.append(task.name)
    return episodes_of(torch.stack(parts), torch.arange(parts[0].shape[0]).expand(len(parts), -1), shot, tuple(names))


@dataclass(frozen=True)
class Characters:
    """Pools of glyph images float32 [classes, k, 1, 28, 28]: characters to train on, and others to choose by."""

    train: Tensor
    validation: Tensor


def character_pools(most: int, images: int, validation_images: int, device: str = "cpu") -> Characters:
    """All characters of the training scripts that resemble none of the held-out alphabets or digits.

    Every tenth one goes to validation, and both pools are standardised by the training pool's mean and deviation.

    Args:
        most: characters to use at most. images, validation_images: of each. device: where the pools shall be.
    """
    avoid = "".join(ALPHABETS[name][0] for name in HELD_OUT) + "0123456789"
    text = without_lookalikes(characters(TRAINING_SCRIPTS), avoid)
    text = "".join(text[i] for i in torch.linspace(0, len(text) - 1, min(most, len(text))).long().tolist())
    # at least ten validation characters, for one ten-class episode
    every = min(10, len(text) // 10)
    validation = text[::every]
    train = "".join(c for i, c in enumerate(text) if i % every)
    x, others = (glyph_pool(*pool).float() for pool in ((train, images), (validation, validation_images)))
    mean, std = x.mean(), x.std()
    return Characters(*(((part - mean) / std)[:, :, None].to(device) for part in (x, others)))


def held_out_tasks(queries: int) -> list[Task]:
    """The held-out alphabets, then real handwritten digits; each with at least `queries` test images a class."""
    # splits are random, so some classes get fewer test images than others: ask for 60 % more
    sizes = SplitSizes(500, 100, 16 * queries + 100)
    return [load_task(name, sizes) for name in (*HELD_OUT, FAR)]
