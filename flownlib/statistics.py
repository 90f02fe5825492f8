"""Intervals for everything we report (a mean, a paired difference, a proportion), and one test of two samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flownlib.weights import Float, check_count, check_real

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """A value with its two-sided 95 % interval and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Values) -> Interval:
    """Mean and Student's t interval (95 %) over independent values; the interval is the whole line for fewer than two.

    Raises:
        ValueError: if there is no value or one is not finite.
    """
    x = np.asarray(values, dtype=float).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(
            f"an interval needs finite values, got {x.size} of which {int((~np.isfinite(x)).sum())} are not finite"
        )
    if x.size == 1:
        return Interval(float(x[0]), -math.inf, math.inf, 1)
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), int(x.size))


def paired_difference(a: Values, b: Values) -> Interval:
    """Interval of mean(a - b) over pairs: the same seeds, episodes or tasks under two methods.

    Raises:
        ValueError: if the two are not of equal length.
    """
    first, second = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    if first.shape != second.shape:
        raise ValueError(f"a paired difference needs equally many values, got {first.size} and {second.size}")
    return mean_interval(first - second)


def proportion_interval(successes: int, n: int) -> Interval:
    """Wilson's interval (95 %) for a proportion in [0, 1], e.g. one network's test accuracy over n images.

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    bounds = stats.binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), int(n))


def clustered_interval(values: Values, clusters: Sequence) -> Interval:
    """Interval of the mean whose units are the clusters (seeds, tasks, alphabets), each counted once by its own mean.

    Raises:
        ValueError: unless each value, all of them finite, has its cluster.
    """
    x, names = np.asarray(values, dtype=float).ravel(), np.asarray(clusters)
    if x.shape != names.shape:
        raise ValueError(f"{x.size} values need as many clusters, not {names.shape}")
    return mean_interval([x[names == name].mean() for name in np.unique(names)])


def energy_test(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], permutations: int, generator: torch.Generator
) -> tuple[float, float]:
    """Energy distance of two samples, and the p-value of their being from one distribution (Székely and Rizzo 2013).

    The distance is 0 for equal samples and positive otherwise. The p-value is the share of random splits of the pooled
    sample whose distance is at least as large, the observed split counted: uniform if all rows are drawn alike and
    independently, never below 1 / (permutations + 1).

    Args:
        x: [n, d].
        y: [m, d].
        permutations: random splits, at least 1.
        generator: of the splits.

    Raises:
        ValueError: if one of the samples is empty or not finite, the two differ in d, or there is no permutation.
    """
    if x.dim() != 2 or not x.numel() or not y.numel() or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"a two-sample test needs rows of one length on both sides, got {tuple(x.shape)} and {tuple(y.shape)}")
    for sample in (x, y):
        check_real("the rows of a two-sample test", sample, x.shape[1:])
    check_count("the number of permutations", permutations)
    pooled = torch.cat([x, y]).cpu().double()  # few rows, and not every device has such numbers
    distance = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist")
    signs = torch.cat([distance.new_full((len(x),), 1 / len(x)), distance.new_full((len(y),), -1 / len(y))])
    orders = torch.rand(permutations, len(pooled), generator=generator).argsort(1)
    splits = torch.cat([signs[None], signs[orders]])
    # E = 2 E|X - Y| - E|X - X'| - E|Y - Y'| = -s^T D s, with s = 1 / n on the one side and -1 / m on the other
    energy = -((splits @ distance) * splits).sum(1)
    at_least = (energy >= energy[0] - 1e-9 * distance.max()).sum()  # rounding must not tell equal splits apart
    return float(energy[0].clamp(min=0)), float(at_least / len(energy))
