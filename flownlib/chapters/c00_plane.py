"""A network of two weights, so that its whole weight space is a plane that can be drawn.

The network hums a chord of two notes, f(s; w) = cos(w_1 s) + cos(w_2 s), at the moments s: two hidden units with a
periodic activation (Sitzmann et al. 2020, "Implicit neural representations with periodic activation functions"). Neither
the sign of a weight nor the order of the two can be heard, so every function has eight copies in the plane. What is heard
at s is called h here, for x is a flow's point. Notebook 00 writes these functions out and compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.weights import check_count

NOISE = 0.5  # standard deviation of the noise on every observed h
POINTS = 24  # observations in one network's own training sample
SUPPORT = 48  # observations in a support set
FREQUENCIES = 8  # numbers in a context
PRIOR = 1.25  # standard deviation of the noise a flow starts from
EXTENT = 6.0  # the pictures show weights in [-EXTENT, EXTENT]


@dataclass(frozen=True)
class Chord:
    """A task: learn the chord of two notes with these pitches, low < high, both positive."""

    name: str
    high: float
    low: float

    @property
    def weights(self) -> Tensor:
        """The noiseless solution in the wedge w_1 >= w_2 >= 0, [1, 2]."""
        return torch.tensor([[self.high, self.low]])


CHORDS = (Chord("low chord", 2.0, 0.75), Chord("middle chord", 3.1, 1.2), Chord("high chord", 4.4, 2.0))


@dataclass(frozen=True)
class PlaneZoo:
    """Trained networks of several tasks: weights [n, 2], task int64 [n]; `tried` counts the trainings behind them."""

    weights: Tensor
    task: Tensor
    tried: int

    def of(self, task: int) -> Tensor:
        """The networks of one task, [k, 2]."""
        return self.weights[self.task == task]

    def folded(self) -> PlaneZoo:
        """The same functions, each by its copy in the wedge."""
        return PlaneZoo(fold(self.weights), self.task, self.tried)

    def split(self, every: int = 5) -> tuple[PlaneZoo, PlaneZoo]:
        """Training and held-out networks; each `every`-th is held out. The order of a zoo's rows is random."""
        held_out = torch.arange(len(self.task)) % every == 0
        part = [PlaneZoo(self.weights[rows], self.task[rows], self.tried) for rows in (~held_out, held_out)]
        return part[0], part[1]


def predict(weights: Tensor, s: Tensor) -> Tensor:
    """The networks' outputs [n, m] for weights [n, 2] at moments s [m], shared, or [n, m], each network's own.

    Raises:
        ValueError: unless weights are [n, 2].
    """
    if weights.dim() != 2 or weights.shape[1] != 2:
        raise ValueError(f"a plane's networks have weights of shape [n, 2], not {list(weights.shape)}")
    # f(s; w) = cos(w_1 s) + cos(w_2 s)
    return torch.cos(weights[:, :1] * s) + torch.cos(weights[:, 1:] * s)


def observe(weights: Tensor, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy recordings of n chords [n, 2]: s [n, points] with s = |normal|, h = f(s; chord) + NOISE * normal."""
    normal = torch.randn(2, len(weights), points, generator=generator)
    s = normal[0].abs()
    return s, predict(weights, s) + NOISE * normal[1]


def chord_weights(task: Tensor, chords: Sequence[Chord] = CHORDS) -> Tensor:
    """The chord behind each row of int64 task [n], as weights [n, 2]."""
    return torch.cat([chord.weights for chord in chords])[task]


def test_moments(count: int = 256) -> Tensor:
    """Evenly spaced quantiles of |normal|, [count]: a test set with no randomness in it."""
    levels = (torch.arange(count) + 0.5) / count
    return torch.special.ndtri((1 + levels) / 2)


def test_loss(weights: Tensor, chord: Chord) -> Tensor:
    """Mean squared distance [n] between the networks' curves and the true, noiseless one; 0 is perfect."""
    s = test_moments().to(weights)
    return (predict(weights, s) - predict(chord.weights.to(weights), s)).square().mean(dim=1)


def loss_surface(chord: Chord, resolution: int = 181, extent: float = EXTENT) -> tuple[Tensor, Tensor]:
    """The test loss over the plane: the axis [resolution] of both weights, and the loss [w_2, w_1]."""
    axis = torch.linspace(-extent, extent, resolution)
    w_2, w_1 = torch.meshgrid(axis, axis, indexing="ij")
    rows = [test_loss(torch.stack(row, dim=-1), chord) for row in zip(w_1, w_2, strict=True)]
    return axis, torch.stack(rows)


def copies(weights: Tensor) -> Tensor:
    """The eight weight vectors with one function: signs and order of [n, 2] in every combination, [8, n, 2]."""
    signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]).to(weights)
    signed = weights * signs[:, None]
    return torch.cat([signed, signed.flip(-1)])


def fold(weights: Tensor) -> Tensor:
    """The one copy of each network [n, 2] that lies in the wedge w_1 >= w_2 >= 0."""
    return weights.abs().sort(dim=-1, descending=True).values


def train(weights: Tensor, s: Tensor, h: Tensor, steps: int = 300, learning_rate: float = 0.1) -> Tensor:
    """Train n networks [n, 2] at once with Adam, each on its own recording s, h [n, m]; returns their weights [n, 2]."""
    check_count("the number of training steps", steps)
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        # mean over a network's data, summed over networks: no network feels another's gradient
        (predict(weights, s) - h).square().mean(dim=1).sum().backward()
        optimizer.step()
    return weights.detach()


def collect(networks: int, generator: torch.Generator, chords: Sequence[Chord] = CHORDS) -> PlaneZoo:
    """Train `networks` for each chord, each from its own initial weights N(0, 4) and on its own noisy recording.

    A network stays in the zoo if its loss on 500 fresh noisy moments is below 1.4 times the noise floor.

    Raises:
        ValueError: for fewer than ten networks a chord.
    """
    if networks < 10:
        raise ValueError(f"a zoo of the plane needs at least 10 networks a chord, not {networks}")
    task = torch.randperm(networks * len(chords), generator=generator) % len(chords)
    truth = chord_weights(task, chords)
    initial = 2 * torch.randn(len(task), 2, generator=generator)
    trained = train(initial, *observe(truth, POINTS, generator))
    s, h = observe(truth, 500, generator)
    kept = (predict(trained, s) - h).square().mean(dim=1) < 1.4 * NOISE**2
    return PlaneZoo(trained[kept], task[kept], len(task))


def context(s: Tensor, h: Tensor) -> Tensor:
    """Summary [n, FREQUENCIES] of support sets s, h [n, m]; the order of the observations does not matter."""
    k = torch.arange(FREQUENCIES).to(s)
    # c_k = 1/m sum_i h_i cos(k s_i)
    return (h[..., None] * torch.cos(s[..., None] * k)).mean(dim=1)


@dataclass(frozen=True)
class Batches:
    """Draws x_0, x_1, c for a flow: x_0 ~ N(0, PRIOR^2), x_1 a network of the zoo, c a fresh support set's context."""

    zoo: PlaneZoo
    chords: Sequence[Chord] = CHORDS

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(self.zoo.task), (count,), generator=generator)
        support = observe(chord_weights(self.zoo.task[rows], self.chords), SUPPORT, generator)
        return PRIOR * torch.randn(count, 2, generator=generator), self.zoo.weights[rows], context(*support)
