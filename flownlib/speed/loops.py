"""Many networks trained together with Adam, and the plain loop that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.networks import Classifier
from flownlib.scoring import Split
from flownlib.speed import backends, lanes
from flownlib.speed.inputs import training_inputs

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def train_many(
    model: Classifier,
    weights: Tensor,
    data: Split,
    orders: Tensor,
    learning_rate: float | Tensor,
    record: Sequence[int] = (),
    weight_decay: float | Tensor = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Train m networks together with Adam.

    Args:
        weights: initial [m, p]. orders: int64 [m, steps, batch], or [1, steps, batch] if all share their minibatches,
            which is faster. learning_rate, weight_decay: one for all, or [m]. record: steps after which to keep a copy
            (0 is the start); the last step if empty. backend: "auto", "lanes" or "torch", see `backends.choose`.

    Returns:
        Checkpoints [len(record), m, p].

    Raises:
        ValueError: for what `training_inputs` refuses.
    """
    m, weights = len(weights), weights.detach()
    given = (weights, data.x, data.y, orders, learning_rate, weight_decay, record)
    if backends.choose(backend, model, weights.dtype, weights.device.type, m) == "lanes":
        return lanes.kernel(model, weights.dtype).train(*given)
    labels, orders, rate, decay, steps_kept = training_inputs(model, *given)
    data, shared = Split(data.x, labels), len(orders) == 1 and m > 1
    size, parts = backends.group_size(model, orders.shape[2], weights), []
    for start in range(0, m, size):
        group = slice(start, start + size)
        own = orders if shared else orders[group]
        parts.append(_train_group(model, weights[group], data, own, rate[group, None], decay[group, None], steps_kept))
    return torch.cat(parts, dim=1)


def _train_group(
    model: Classifier, weights: Tensor, data: Split, orders: Tensor, rate: Tensor, decay: Tensor, record: list[int]
) -> Tensor:
    """Plain PyTorch: checkpoints [len(record), m, p] of one group; rate and decay are [m, 1]."""
    weights, shared = weights.clone().requires_grad_(), len(orders) < len(weights)
    moments, kept = (torch.zeros_like(weights), torch.zeros_like(weights)), []
    images = data.x.flatten(1)
    for step in range(record[-1] + 1):
        if step in record:
            kept.append(weights.detach().clone())
        if step == record[-1]:
            break
        batch = orders[:, step]
        # [b, m, …] in memory: the grouped convolution wants the networks beside the channels
        x = images.index_select(0, batch.t().flatten()).view(batch.shape[1], len(batch), *data.x.shape[1:]).transpose(0, 1)
        logits = model.forward(weights, x[0] if shared else x)
        # the mean over each network's batch, summed over networks: nobody's gradient depends on how many there are
        labels = data.y[batch].expand(len(weights), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / batch.shape[1]
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            adam(weights, gradient, moments, rate, decay, step + 1)
    return torch.stack(kept)


def adam(weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: Tensor, decay: Tensor, t: int) -> None:
    """Step t of Adam (Kingma and Ba 2015, algorithm 1) with L2 weight decay, in place; each row has its own rate and decay."""
    m, v = moments
    gradient = gradient + decay * weights
    # m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²
    m.lerp_(gradient, 1 - BETA_1)
    v.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    # w ← w - η m̂ / (√v̂ + ε),  m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)
    root = (v.sqrt() / (1 - BETA_2**t) ** 0.5).add_(EPSILON)
    weights.sub_(rate / (1 - BETA_1**t) * m / root)


def train_one(
    model: Classifier, weights: Tensor, data: Split, order: Tensor, learning_rate: float, weight_decay: float = 0.0
) -> Tensor:
    """The same training of one network [p] with a plain `torch.nn` module and loop: the reference for speed and equality."""
    module = model.module().to(weights)
    module.load_state_dict(model.layout.state_dict(weights))
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for batch in order:
        loss = F.cross_entropy(module(data.x[batch]), data.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.layout.flatten(module.state_dict())
