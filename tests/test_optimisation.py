"""The one training loop does what the loops did that it replaces, and seeded construction leaves other random numbers alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flownlib.optimisation import minimise, seeded_module, warmup_cosine

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def plain(parameters, loss, steps: int, clip: bool, constant: bool) -> list[float]:
    """The loop as it is usually written."""
    optimizer, losses = torch.optim.Adam(parameters, 0.1), []
    rates = [group["lr"] for group in optimizer.param_groups]
    learners = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1.0 if constant else warmup_cosine(step, steps))
        value = loss()
        optimizer.zero_grad()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(learners, 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_minimise_is_the_plain_loop(clip: bool, constant: bool):
    def problem():
        a, b = torch.zeros(3, requires_grad=True), torch.ones((), requires_grad=True)
        return [{"params": [a], "lr": 0.03}, {"params": [b]}], lambda: ((X @ a + b - 50) ** 2).mean()

    (groups, loss), (again, same) = problem(), problem()
    expected = plain(groups, loss, 30, clip, constant)
    losses = minimise(same, again, 30, 0.1, "test", weight_decay=0.0, clip=1.0 if clip else math.inf, constant=constant)
    assert losses == expected and losses[-1] < losses[0]


def test_no_step_is_no_training():
    with pytest.raises(ValueError, match="number of training steps must be a whole number of at least 1, not 0"):
        minimise(lambda: torch.zeros(()), nn.Linear(1, 1), 0, 0.1, "test", constant=True)


def test_seeded_modules_are_equal_and_nobody_elses_numbers_change():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (seeded_module(seed, lambda: nn.Linear(2, 2)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
