"""Reward fine-tuning of the flow itself: after it has met one new support set, before it writes the network.

The reward is the log-likelihood that generated networks give to labelled images, sent back through the few Euler steps
of the sampler; an anchor keeps the velocity near the one that was learned (the FLoWN successor, arXiv 2507.10623, does
this by adjoint matching; with two steps the gradient can be taken directly).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flownlib.extensions.class_tokens import ClassTokenVelocity, query_loss
from flownlib.extensions.network_tokens import NetworkFlow
from flownlib.weights import check_count


def split_support(support: Tensor, way: int, context: int, splits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random ways to deal a support [n * k, c, h, w] into a context and held-out images, class by class.

    Returns:
        Contexts [splits, n * context, c, h, w] and the rest [splits, n * (k - context), c, h, w], both sorted by class.

    Raises:
        ValueError: if nothing would be held out, or nothing left to condition on.
    """
    per_class = len(support) // way
    if not 0 < context < per_class:
        raise ValueError(f"of {per_class} images a class between 1 and {per_class - 1} can be the context, not {context}")
    order = torch.rand(splits, way, per_class, generator=generator).argsort(dim=2).to(support.device)
    dealt = support.unflatten(0, (way, per_class))[torch.arange(way, device=support.device)[:, None], order]
    return dealt[:, :, :context].flatten(1, 2), dealt[:, :, context:].flatten(1, 2)


def velocity_anchor(model: ClassTokenVelocity, frozen: ClassTokenVelocity, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Mean squared difference of two flows' predicted x_1, which is that of their velocities times (1 - t)^2: a scalar."""
    with torch.no_grad():
        target = frozen.predict(x, t, y)
    return (model.predict(x, t, y) - target).square().mean()


def reward_fine_tune(
    flow: NetworkFlow,
    support: Tensor,
    steps: int,
    seed: int,
    context: int | None = 4,
    splits: int = 8,
    learning_rate: float = 1e-4,
    anchor: float = 0.1,
) -> NetworkFlow:
    """A copy of the flow, tuned to one support set; the shared body and its basis stay as they are.

    Args:
        support: [n * k, c, h, w], sorted by class. context: images a class that condition the flow while the others
            reward it; None rewards it on the very images that it was shown. anchor: weight of the velocity anchor.
    """
    check_count("the number of training steps", steps)
    generator, way = torch.Generator().manual_seed(seed), flow.model.num_classes
    tuned = copy.deepcopy(flow)
    learners = [*tuned.body_flow.parameters(), *tuned.head_flow.parameters()]
    optimizer = torch.optim.Adam(learners, learning_rate)
    for _ in range(steps):
        if context is None:
            shown = rewarded = support.expand(splits, *support.shape)
        else:
            shown, rewarded = split_support(support, way, context, splits, generator)
        labels = torch.arange(way, device=support.device).repeat_interleave(rewarded.shape[1] // way)
        x_0 = tuned.noise(splits, generator)
        loss = query_loss(tuned.model.forward(tuned(shown, x_0), rewarded), labels)
        t = torch.rand(splits, generator=generator).to(support)
        with torch.no_grad():
            look, features = tuned.look(shown), tuned.features(tuned.shared_body(splits), shown)
            y = tuned.context(look, features)
        drift = velocity_anchor(tuned.body_flow, flow.body_flow, x_0[0], y, t)
        drift = drift + velocity_anchor(tuned.head_flow, flow.head_flow, x_0[1], y, t)
        optimizer.zero_grad()
        (loss + anchor * drift).backward()
        nn.utils.clip_grad_norm_(learners, 1.0)
        optimizer.step()
    return tuned
