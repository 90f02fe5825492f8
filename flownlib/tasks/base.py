"""A task: labelled images in three splits, standardised by its training split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.harness.settings import check_fields, setting
from flownlib.scoring import Split, Task


@dataclass(frozen=True)
class SplitSizes:
    """Images in each split of a task."""

    train: int = setting(2000, "to train on", 2, 10_000_000)
    validation: int = setting(1000, "to choose by", 1, 10_000_000)
    test: int = setting(5000, "to report on", 1, 10_000_000)

    def __post_init__(self) -> None:
        check_fields(self)

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
