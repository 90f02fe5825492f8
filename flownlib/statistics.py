"""Intervals for everything we report: one interval for a mean, one for a paired difference, one for a proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

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

    def as_record(self) -> dict[str, float | int]:
        """Rounded fields, ready for a results file."""
        return {key: round(number, 5) if isinstance(number, float) else number for key, number in asdict(self).items()}


def mean_interval(values: Values) -> Interval:
    """Mean and Student's t interval over independent values; the interval is the whole line for fewer than two.

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
    a, b = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs equally many values, got {a.size} and {b.size}")
    return mean_interval(a - b)


def proportion_interval(successes: int, n: int) -> Interval:
    """Wilson's interval for a proportion, e.g. one network's test accuracy over n images.

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    bounds = stats.binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), int(n))


def clustered_interval(values: Values, clusters: Sequence) -> Interval:
    """Interval of the mean whose units are the clusters (seeds, tasks, alphabets), each counted once by its own mean."""
    values, clusters = np.asarray(values, dtype=float).ravel(), np.asarray(clusters)
    return mean_interval([values[clusters == cluster].mean() for cluster in np.unique(clusters)])
