"""A network of two weights, so that its whole weight space is a plane that can be drawn.

The network hums a chord of two notes, f(x; w) = cos(w_1 x) + cos(w_2 x): two hidden units with a periodic
activation (Sitzmann et al. 2020, "Implicit neural representations with periodic activation functions"). Neither
the sign of a weight nor the order of the two can be heard, so every function has eight copies in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.evaluation import distances
from flownlib.weights import check_count

NOISE = 0.5  # standard deviation of the noise on every observed y
POINTS = 24  # observations in one network's own training sample
SUPPORT = 48  # observations in a support set
FREQUENCIES = 8  # numbers in a context
PRIOR = 0.5  # standard deviation of the noise a flow starts from, in units of the zoo's
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


def predict(weights: Tensor, x: Tensor) -> Tensor:
    """The networks' outputs [n, m] for weights [n, 2] at inputs x [m], shared, or [n, m], each network's own.

    Raises:
        ValueError: unless weights are [n, 2].
    """
    if weights.dim() != 2 or weights.shape[1] != 2:
        raise ValueError(f"a plane's networks have weights of shape [n, 2], not {list(weights.shape)}")
    # f(x; w) = cos(w_1 x) + cos(w_2 x)
    return torch.cos(weights[:, :1] * x) + torch.cos(weights[:, 1:] * x)


def observe(weights: Tensor, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy data of n chords [n, 2]: x [n, points] with x = |normal|, y = f(x; chord) + NOISE * normal."""
    normal = torch.randn(2, len(weights), points, generator=generator)
    x = normal[0].abs()
    return x, predict(weights, x) + NOISE * normal[1]


def chord_weights(task: Tensor, chords: Sequence[Chord] = CHORDS) -> Tensor:
    """The chord behind each row of int64 task [n], as weights [n, 2]."""
    return torch.cat([chord.weights for chord in chords])[task]


def test_inputs(count: int = 256) -> Tensor:
    """Evenly spaced quantiles of |normal|, [count]: a test set with no randomness in it."""
    levels = (torch.arange(count) + 0.5) / count
    return torch.special.ndtri((1 + levels) / 2)


def test_loss(weights: Tensor, chord: Chord) -> Tensor:
    """Mean squared distance [n] between the networks' curves and the true, noiseless one; 0 is perfect."""
    x = test_inputs().to(weights)
    return (predict(weights, x) - predict(chord.weights.to(weights), x)).square().mean(dim=1)


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


def train(weights: Tensor, x: Tensor, y: Tensor, steps: int = 300, learning_rate: float = 0.1) -> Tensor:
    """Train n networks [n, 2] at once with Adam, each on its own data x, y [n, m]; returns their weights [n, 2]."""
    check_count("the number of training steps", steps)
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        # mean over a network's data, summed over networks: no network feels another's gradient
        (predict(weights, x) - y).square().mean(dim=1).sum().backward()
        optimizer.step()
    return weights.detach()


def collect(networks: int, generator: torch.Generator, chords: Sequence[Chord] = CHORDS, steps: int = 300) -> PlaneZoo:
    """Train `networks` for each chord, each from its own initial weights N(0, 4) and on its own noisy sample.

    A network stays in the zoo if its loss on 500 fresh noisy observations is below 1.4 times the noise floor.

    Raises:
        ValueError: for fewer than ten networks a chord.
    """
    if networks < 10:
        raise ValueError(f"a zoo of the plane needs at least 10 networks a chord, not {networks}")
    task = torch.randperm(networks * len(chords), generator=generator) % len(chords)
    truth = chord_weights(task, chords)
    initial = 2 * torch.randn(len(task), 2, generator=generator)
    trained = train(initial, *observe(truth, POINTS, generator), steps)
    x, y = observe(truth, 500, generator)
    kept = (predict(trained, x) - y).square().mean(dim=1) < 1.4 * NOISE**2
    return PlaneZoo(trained[kept], task[kept], len(task))


def context(x: Tensor, y: Tensor) -> Tensor:
    """Summary [n, FREQUENCIES] of support sets x, y [n, m]; the order of the observations does not matter."""
    k = torch.arange(FREQUENCIES).to(x)
    # c_k = 1/m sum_i y_i cos(k x_i)
    return (y[..., None] * torch.cos(x[..., None] * k)).mean(dim=1)


def prior(count: int, generator: torch.Generator) -> Tensor:
    """Starting points of the flow [count, 2], x_0 ~ N(0, PRIOR^2)."""
    return PRIOR * torch.randn(count, 2, generator=generator)


@dataclass(frozen=True)
class Batches:
    """Draws x_0, x_1, y for a flow: x_0 from the prior, x_1 a network over `scale`, y a fresh support set's context."""

    zoo: PlaneZoo
    chords: Sequence[Chord] = CHORDS

    @property
    def scale(self) -> float:
        """One number for both weights, so that the plane's symmetry survives the scaling."""
        return float(self.zoo.weights.square().mean().sqrt())

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(self.zoo.task), (count,), generator=generator)
        support = observe(chord_weights(self.zoo.task[rows], self.chords), SUPPORT, generator)
        return prior(count, generator), self.zoo.weights[rows] / self.scale, context(*support)


def retrieve(zoo: PlaneZoo, x: Tensor, y: Tensor) -> Tensor:
    """Baseline: the networks [k, 2] of the task whose networks fit one support set x, y [m] best on average."""
    losses = (predict(zoo.weights, x) - y).square().mean(dim=1)
    return zoo.of(min(zoo.task.unique().tolist(), key=lambda task: float(losses[zoo.task == task].mean())))


def train_on_support(x: Tensor, y: Tensor, generator: torch.Generator, starts: int = 64) -> Tensor:
    """Rival: for each support set x, y [s, m] the network with the least loss on it after `starts` trainings, [s, 2]."""
    x, y = x.repeat_interleave(starts, dim=0), y.repeat_interleave(starts, dim=0)
    trained = train(2 * torch.randn(len(x), 2, generator=generator), x, y)
    best = (predict(trained, x) - y).square().mean(dim=1).reshape(-1, starts).argmin(dim=1)
    return trained.reshape(-1, starts, 2)[torch.arange(len(best)), best]


def noisy(zoo: Tensor, count: int, generator: torch.Generator, scale: float = 0.1) -> Tensor:
    """Baseline: `count` training networks plus normal noise of `scale` times the zoo's standard deviation, [count, 2]."""
    rows = torch.randint(len(zoo), (count,), generator=generator)
    return zoo[rows] + scale * zoo.std(dim=0) * torch.randn(count, 2, generator=generator)


def gaussian(zoo: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Baseline: `count` draws from the normal distribution with the zoo's mean and covariance, [count, 2]."""
    root = torch.linalg.cholesky(zoo.T.cov() + 1e-6 * torch.eye(2))
    return zoo.mean(dim=0) + torch.randn(count, 2, generator=generator) @ root.T


def average(zoo: Tensor, count: int, generator: torch.Generator, parents: int = 10) -> Tensor:
    """Baseline: `count` averages of `parents` networks drawn at random, [count, 2]."""
    rows = torch.randint(len(zoo), (count, parents), generator=generator)
    return zoo[rows].mean(dim=1)


def spread(weights: Tensor, zoo: Tensor) -> float:
    """The samples' root mean squared distance from their own mean, over the zoo's; 1 is the zoo's."""
    return float((weights - weights.mean(dim=0)).square().mean().sqrt() / (zoo - zoo.mean(dim=0)).square().mean().sqrt())


def nearest(weights: Tensor, training: Tensor) -> Tensor:
    """Distance [n] to the nearest training network."""
    return distances(weights, training).amin(dim=1)


def nearest_training_distance(weights: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Mean distance to the nearest training network, over the held-out networks'; 0 is a copy, 1 is as new as they."""
    return float(nearest(weights, training).mean() / nearest(held_out, training).mean())


def barrier(zoo: Tensor, chord: Chord) -> tuple[float, float]:
    """Mean test loss of the means of disjoint pairs of networks [n, 2], and of those networks themselves."""
    first, second = zoo[: len(zoo) // 2], zoo[len(zoo) // 2 : len(zoo) // 2 * 2]
    return float(test_loss((first + second) / 2, chord).mean()), float(test_loss(torch.cat([first, second]), chord).mean())


def score(weights: Tensor, training: Tensor, held_out: Tensor, chord: Chord) -> dict[str, float]:
    """What a table says of a method's networks [n, 2] for one chord, by the name of the quantity."""
    return {
        "test_loss_mean": float(test_loss(weights, chord).mean()),
        "spread": spread(weights, held_out),
        "nearest_training_distance": nearest_training_distance(weights, training, held_out),
    }
