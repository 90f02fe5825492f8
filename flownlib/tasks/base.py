"""A task: labelled images in three splits, standardised by its training split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images x float32 [n, c, h, w] and labels y int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Task:
    """A named classification problem. No image appears in two splits."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split

    def support(self, per_class: int, generator: torch.Generator) -> Split:
        """A random support set drawn from the training split, `per_class` images a class, sorted by class.

        Raises:
            ValueError: if a class has fewer images.
        """
        chosen = []
        for label in range(self.num_classes):
            places = (self.train.y == label).nonzero()[:, 0]
            if len(places) < per_class:
                raise ValueError(f"class {label} of task {self.name!r} has {len(places)} training images, not {per_class}")
            chosen.append(places[torch.randperm(len(places), generator=generator)[:per_class]])
        index = torch.cat(chosen)
        return Split(self.train.x[index], self.train.y[index])

    def to(self, device: torch.device | str) -> Task:
        """The same task on another device."""
        return Task(self.name, self.num_classes, *(split.to(device) for split in (self.train, self.validation, self.test)))


@dataclass(frozen=True)
class SplitSizes:
    """Images in each split of a task."""

    train: int = 2000
    validation: int = 1000
    test: int = 5000

    @property
    def total(self) -> int:
        """Images in all."""
        return self.train + self.validation + self.test


def make_task(name: str, images: Tensor, labels: Tensor, sizes: SplitSizes, seed: int) -> Task:
    """Shuffle, split and standardise.

    Args:
        images: uint8 or float [n, c, h, w] with n >= sizes.total. labels: int64 [n].

    Raises:
        ValueError: if there are too few images.
    """
    if len(images) < sizes.total:
        raise ValueError(f"task {name!r} has {len(images)} images, the splits need {sizes.total}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: sizes.total]
    x, y = images[order].float(), labels[order]
    mean, std = x[: sizes.train].mean(), x[: sizes.train].std()
    x_parts, y_parts = (values.split([sizes.train, sizes.validation, sizes.test]) for values in ((x - mean) / std, y))
    splits = [Split(a.contiguous(), b.contiguous()) for a, b in zip(x_parts, y_parts, strict=True)]
    return Task(name, int(labels.max()) + 1, *splits)
