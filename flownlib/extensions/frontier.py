"""What "accurate and diverse" means: five criteria, and a margin over the nulls at matched novelty and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ACCURACY_GAIN = -0.01  # at least, over held-out networks of the same task
SPREAD = (0.8, 1.2)
OFFSET = 0.25  # at most
NOVELTY = 0.95  # at least, in units of a held-out network's distance to its nearest training network
OVERLAP = 0.03  # at most, above that of held-out networks with training networks


@dataclass(frozen=True)
class Point:
    """Samples of one start after some further training: means over tasks. `share` is the further training's, see SHARES."""

    method: str
    share: float
    accuracy: float
    gain: float
    spread: float
    offset: float
    novelty: float
    overlap: float


def criteria(point: Point, held_out_overlap: float) -> dict[str, bool]:
    """Which of the five criteria the samples meet, by name."""
    return {
        "accuracy": point.gain >= ACCURACY_GAIN,
        "spread": SPREAD[0] <= point.spread <= SPREAD[1],
        "offset": point.offset <= OFFSET,
        "novelty": point.novelty >= NOVELTY,
        "overlap": point.overlap <= held_out_overlap + OVERLAP,
    }


def margin(point: Point, nulls: Sequence[Point], tolerance: float = 0.05) -> float:
    """Accuracy over the best null that is at least as novel, up to a tolerance, and was not trained further than the samples.

    Samples that are more novel than every null are compared with the most novel ones.

    Raises:
        ValueError: if every null was trained further.
    """
    affordable = [null for null in nulls if null.share <= point.share]
    if not affordable:
        raise ValueError(f"no null was trained as little as {point.method}: add one with a share of at most {point.share:g}")
    novelty = min(point.novelty, max(null.novelty for null in affordable)) - tolerance
    return point.accuracy - max(null.accuracy for null in affordable if null.novelty >= novelty)


def points(values: Mapping[tuple[str, str, float], float], start: Sequence[tuple[str, float]]) -> list[Point]:
    """Points of (method, share) pairs from values by (quantity, method, share)."""
    quantities = ("test_accuracy_mean", "accuracy_gain", "spread", "offset", "nearest_training_distance", "error_overlap")
    return [Point(method, share, *(values[quantity, method, share] for quantity in quantities)) for method, share in start]
