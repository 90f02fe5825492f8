"""Training many small networks at once: m networks are one grouped network, and Adam is elementwise.

Each network keeps its own initialisation, its own minibatch order and its own mean gradient, so the result is the
one that m separate trainings give (exactly so in float64, up to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.classifiers import Classifier
from flownlib.tasks import Split


@dataclass(frozen=True)
class Training:
    """Adam with a constant learning rate over shuffled minibatches."""

    epochs: int = 15
    batch_size: int = 50
    learning_rate: float = 3e-3

    def steps(self, images: int) -> int:
        """Optimiser steps on a training split of that many images; an incomplete last batch is dropped."""
        return self.epochs * (images // self.batch_size)


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on every one of the numbers."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 12_345) % (2**63 - 1)
    return torch.Generator().manual_seed(state)


def initial_weights(model: Classifier, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """One Kaiming-initialised network a seed [m, p]; a seed gives the same network whatever the others are."""
    return torch.cat([model.initialise(1, seeded(seed, 1), dtype) for seed in seeds])


def minibatch_orders(seeds: Sequence[int], images: int, training: Training) -> Tensor:
    """Which images each network sees at each step: int64 [m, steps, batch]. Every epoch is a fresh permutation."""
    used = images // training.batch_size * training.batch_size
    orders = []
    for seed in seeds:
        generator = seeded(seed, 2)
        epochs = [torch.randperm(images, generator=generator)[:used] for _ in range(training.epochs)]
        orders.append(torch.cat(epochs).view(-1, training.batch_size))
    return torch.stack(orders)


def train_many(
    model: Classifier, weights: Tensor, data: Split, orders: Tensor, learning_rate: float, record: Sequence[int] = ()
) -> Tensor:
    """Train m networks together.

    Args:
        weights: initial [m, p]. orders: int64 [m, steps, batch]. record: steps (counted from 1) after which to keep
            a copy; the last step if empty.

    Returns:
        Checkpoints [len(record), m, p].
    """
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=learning_rate, fused=weights.is_cuda or weights.dtype == torch.float32)
    record, kept = set(record) or {orders.shape[1]}, []
    for step in range(orders.shape[1]):
        batch = orders[:, step]
        logits = model.forward(weights, data.x[batch])
        # the mean over each network's batch, summed over networks: nobody's gradient depends on how many there are
        loss = F.cross_entropy(logits.flatten(0, 1), data.y[batch].flatten(), reduction="sum") / batch.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in record:
            kept.append(weights.detach().clone())
    return torch.stack(kept)


def train_one(model: Classifier, weights: Tensor, data: Split, order: Tensor, learning_rate: float) -> Tensor:
    """The same training of one network [p] with a plain `torch.nn` module and loop: the reference for speed and equality."""
    module = model.module().to(weights.dtype)
    module.load_state_dict(model.layout.state_dict(weights))
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for batch in order:
        loss = F.cross_entropy(module(data.x[batch]), data.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.layout.join(module.state_dict())
