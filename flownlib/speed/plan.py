"""What is decided before training begins: hyper-parameters, seeds, initial weights, and who sees which images when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.harness.settings import check_fields, setting
from flownlib.networks import Classifier, Model
from flownlib.optimisation import seeded
from flownlib.weights import check_real, is_finite, whole_numbers


@dataclass(frozen=True)
class Training:
    """Adam with a constant learning rate and L2 weight decay over shuffled minibatches."""

    epochs: int = setting(15, "passes over the training images", 1, 100_000)
    batch_size: int = setting(50, "images of a step", 1, 1_000_000)
    learning_rate: float = setting(3e-3, "of Adam", 1e-8, 100)
    weight_decay: float = setting(0.0, "added to the gradient, times the weights", 0, 100)

    def __post_init__(self) -> None:
        check_fields(self)

    def steps(self, images: int) -> int:
        """Optimiser steps on a training split of that many images; an incomplete last batch is dropped."""
        return self.epochs * (images // self.batch_size)


def initial_weights(model: Classifier, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """One freshly initialised network a seed [m, p]; a seed gives the same network whatever the others are."""
    return torch.cat([model.initialise(1, seeded(seed, 1), dtype) for seed in seeds])


def minibatch_orders(seeds: Sequence[int], images: int, training: Training, fractions: Sequence[float] | None = None) -> Tensor:
    """Which images each network sees at each step: int64 [m, steps, batch]. Every epoch is a fresh permutation.

    A network with a data fraction below 1 goes over its own random subset again and again for the same number of steps.

    Raises:
        ValueError: if a fraction leaves less than one batch.
    """
    orders, steps = [], training.steps(images)
    for seed, fraction in zip(seeds, fractions or [1.0] * len(seeds), strict=True):
        generator, count = seeded(seed, 2), round(images * fraction)
        if count < training.batch_size:
            raise ValueError(f"a data fraction of {fraction} leaves {count} images, less than a batch of {training.batch_size}")
        chosen = torch.arange(images) if count == images else torch.randperm(images, generator=seeded(seed, 3))[:count]
        used = count // training.batch_size * training.batch_size
        passes = -(-steps * training.batch_size // used)
        epochs = [chosen[torch.randperm(count, generator=generator)[:used]] for _ in range(passes)]
        orders.append(torch.cat(epochs)[: steps * training.batch_size].view(steps, training.batch_size))
    return torch.stack(orders)


def training_inputs(
    model: Model,
    weights: Tensor,
    images: Tensor,
    labels: Tensor,
    orders: Tensor,
    learning_rate: float | Tensor,
    weight_decay: float | Tensor,
    record: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """What `train_many` was given, checked: labels [n] and orders as int64, rate [m] and decay [m], the steps to record.

    Raises:
        ValueError: for weights or images that are not finite or do not fit the model, labels or image numbers out of range,
            other numbers of labels than of images or of orders than of networks, a rate that is not positive, a negative
            decay, or a recorded step that is never reached.
    """
    check_real("initial weights", weights, (model.layout.size,))
    check_real("images", images, tuple(model.image_shape))
    m = len(weights)
    labels = whole_numbers("labels", labels, model.num_classes)
    orders = whole_numbers("the images that minibatches name", orders, len(images))
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need as many labels, not {tuple(labels.shape)}")
    if orders.dim() != 3 or len(orders) not in (1, m):
        raise ValueError(
            f"{m} networks need {m} minibatch orders, or one that all share, [m, steps, batch], not {list(orders.shape)}"
        )
    rate, decay = (torch.as_tensor(x, dtype=weights.dtype, device=weights.device) for x in (learning_rate, weight_decay))
    if any(x.shape not in ((), (m,)) or not is_finite(x) for x in (rate, decay)) or rate.min() <= 0 or decay.min() < 0:
        raise ValueError(
            f"{m} networks need one learning rate above 0, or {m}, and weight decays of 0 or more, "
            f"not {learning_rate} and {weight_decay}"
        )
    steps, recorded = orders.shape[1], sorted(set(record)) or [orders.shape[1]]
    if recorded[0] < 0 or recorded[-1] > steps:
        raise ValueError(f"steps to record must lie between 0 and {steps}, got {recorded}")
    return labels, orders, rate.expand(m), decay.expand(m), recorded
