"""Figures of the open problem: accuracy against novelty with the nulls' envelope, and accuracy against the cost of training on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flownlib.figures import GREY, INK, PALETTE
from flownlib.frontier import ACCURACY_GAIN, OFFSET, SPREAD, Point, envelope, points

HELD_OUT = "zoo_held_out"
NAMES = {
    "matched": "activation matching (ours)",
    "corrected": "Gaussian + corrector",
    "corrected_flow": "flow + corrector",
    "pca_flow": "flow",
    "gaussian": "Gaussian",
    "gaussian_diagonal": "diagonal Gaussian",
    "fresh": "fresh network",
    "interpolation": "interpolation",
    "noise_0.5": "noise .5",
    "noise_1": "noise 1",
    "soup": "soup",
    "retrieval": "retrieval",
    HELD_OUT: "held-out networks",
}


def points_of(records: Sequence[Mapping], kind: str) -> list[Point]:
    """The points of one kind of zoo in a study's records, held-out networks among them."""
    mine = [record for record in records if record["setting"].get("zoo") == kind]
    values = {(record["quantity"], record["method"], record["setting"]["share"]): record["value"] for record in mine}
    return points(values, list(dict.fromkeys((method, share) for quantity, method, share in values if quantity == "spread")))


def _like_the_zoo(point: Point) -> bool:
    return SPREAD[0] <= point.spread <= SPREAD[1] and point.offset <= OFFSET


def _frontier(ax: Axes, every: Sequence[Point], ours: Sequence[str], share: float, title: str) -> None:
    (held_out,) = (point for point in every if point.method == HELD_OUT)
    shown = [point for point in every if point.share == share and point.method != HELD_OUT]
    outline = envelope([point for point in shown if point.method not in ours])
    x, y = (np.array([getattr(point, name) for point in outline]) for name in ("novelty", "accuracy"))
    ax.step([0, *x], [y[0], *y], where="pre", color=GREY, lw=1.4, label="best null at least as novel")
    ax.fill_between([0, *x], [y[0], *y], step="pre", color=GREY, alpha=0.12, lw=0)
    ax.axhspan(held_out.accuracy + ACCURACY_GAIN, 1, color=PALETTE[2], alpha=0.1, lw=0)
    for point in (*shown, held_out):
        color = INK if point is held_out else PALETTE[0] if point.method in ours else PALETTE[1]
        face = color if _like_the_zoo(point) else "white"
        ax.scatter(point.novelty, point.accuracy, s=20 + 90 * point.spread, color=face, edgecolor=color, lw=1.6, zorder=3)
        left = point.novelty > 0.75 * max(1.0, x.max())
        label = f"{NAMES.get(point.method, point.method)}  {point.offset:.2f}"
        place = {"xytext": (-9, 4) if left else (9, 4), "ha": "right" if left else "left"}
        ax.annotate(label, (point.novelty, point.accuracy), textcoords="offset points", fontsize=8, color=color, **place)
    ax.set(title=title, xlabel="distance to the nearest training network (held-out: 1)", xlim=(-0.05, None), ylim=(0, 1))


def frontiers(records: Sequence[Mapping], kinds: Mapping[str, str], ours: Sequence[str], shares: Sequence[float]) -> Figure:
    """Accuracy against novelty, a column a kind of zoo, a row a share of further training.

    A disc grows with spread and is filled if spread and offset (the number) are the zoo's; the green band is within a point
    of held-out networks.
    """
    size = (6.4 * len(kinds), 4.4 * len(shares))
    fig, axes = plt.subplots(len(shares), len(kinds), figsize=size, squeeze=False)
    for row, share in zip(axes, shares, strict=True):
        for ax, (kind, name) in zip(row, kinds.items(), strict=True):
            _frontier(ax, points_of(records, kind), ours, share, f"{name}; further training: {share:.0%} of a full one")
        row[0].set_ylabel("mean test accuracy")
    axes[0, 0].legend(fontsize=9, loc="lower left")
    return fig


def training_on(records: Sequence[Mapping], kinds: Mapping[str, str], starts: Sequence[str]) -> Figure:
    """Accuracy, spread and offset of some starts against the share of a full training that they are given; a row a kind of zoo."""
    panels = {"accuracy": "mean test accuracy", "spread": "spread", "offset": "offset"}
    size = (4.2 * len(panels), 3.2 * len(kinds))
    fig, axes = plt.subplots(len(kinds), len(panels), figsize=size, squeeze=False, sharex=True)
    for row, (kind, title) in zip(axes, kinds.items(), strict=True):
        every = points_of(records, kind)
        (held_out,) = (point for point in every if point.method == HELD_OUT)
        bands = {"accuracy": (held_out.accuracy + ACCURACY_GAIN, 1), "spread": SPREAD, "offset": (0, OFFSET)}
        for ax, (field, name) in zip(row, panels.items(), strict=True):
            ax.axhspan(*bands[field], color=PALETTE[2], alpha=0.12, lw=0)
            for color, start in zip(PALETTE, starts, strict=False):
                curve = sorted((point.share, getattr(point, field)) for point in every if point.method == start)
                ax.plot(*zip(*curve, strict=True), color=color, marker="o", lw=2, label=NAMES.get(start, start))
            ax.set(title=f"{title}: {name}")
    axes[0, 0].legend(fontsize=9, loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("share of a training from scratch")
    return fig
