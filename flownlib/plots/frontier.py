"""Figures of the open problem: accuracy against novelty with the nulls' envelope, and accuracy against what a network costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flownlib.extensions.frontier import ACCURACY_GAIN, OFFSET, SPREAD, Point, envelope, points
from flownlib.plots.style import GREEN, GREY, colour_of, name_of

HELD_OUT = "zoo_held_out"


def points_of(records: Sequence[Mapping], kind: str) -> list[Point]:
    """The points of one kind of zoo in a study's records, held-out networks among them."""
    mine = [record for record in records if record["setting"].get("zoo") == kind]
    values = {(record["quantity"], record["method"], record["setting"]["share"]): record["value"] for record in mine}
    return points(values, list(dict.fromkeys((method, share) for quantity, method, share in values if quantity == "spread")))


def _like_the_zoo(point: Point) -> bool:
    return SPREAD[0] <= point.spread <= SPREAD[1] and point.offset <= OFFSET


def _frontier(ax: Axes, every: Sequence[Point], ours: Sequence[str], share: float, title: str) -> None:
    (held_out,) = (point for point in every if point.method == HELD_OUT)
    shown = [*(point for point in every if point.share == share and point.method != HELD_OUT), held_out]
    outline = envelope([point for point in shown[:-1] if point.method not in ours])
    x, y = (np.array([getattr(point, name) for point in outline]) for name in ("novelty", "accuracy"))
    ax.step([-0.1, *x], [y[0], *y], where="pre", color=GREY, lw=1.4)
    ax.fill_between([-0.1, *x], [y[0], *y], step="pre", color=GREY, alpha=0.12, lw=0)
    ax.axhspan(held_out.accuracy + ACCURACY_GAIN, 1, color=GREEN, alpha=0.1, lw=0)
    for point in shown:
        color = colour_of(point.method)
        face = color if _like_the_zoo(point) else "white"
        ax.scatter(point.novelty, point.accuracy, s=15 + 70 * point.spread, color=face, edgecolor=color, lw=1.6, zorder=3)
    lowest = min(point.accuracy for point in shown)
    ax.set(title=title, xlabel="distance to the nearest training network (held-out: 1)", xlim=(-0.1, None))
    ax.set_ylim(lowest - 0.07 * (1 - lowest), max(point.accuracy for point in shown) + 0.07 * (1 - lowest))
    _names(ax, shown)


def _names(ax: Axes, shown: Sequence[Point]) -> None:
    """Names and offsets in a column beside the axes, from high accuracy to low, each with a thin line to its point."""
    order = sorted(shown, key=lambda point: -point.accuracy)
    line = {"arrowstyle": "-", "lw": 0.8, "alpha": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
    for place, point in zip(np.linspace(0.97, 0.03, len(shown)), order, strict=True):
        text, at = f"{name_of(point.method)}  {point.offset:.2f}", (point.novelty, point.accuracy)
        style = {"xytext": (1.04, place), "textcoords": "axes fraction", "fontsize": 9, "va": "center"}
        ax.annotate(text, at, **style, arrowprops=line | {"color": colour_of(point.method)})


def frontiers(records: Sequence[Mapping], kinds: Mapping[str, str], ours: Sequence[str], shares: Sequence[float]) -> Figure:
    """Accuracy against novelty, a column a kind of zoo, a row a share of further training.

    A disc grows with spread and is filled if spread and offset (the number) are the zoo's. The grey line is the best null that
    is at least as novel; the green band is at most a point below held-out networks.
    """
    size = (6.6 * len(kinds), 3.6 * len(shares))
    fig, axes = plt.subplots(len(shares), len(kinds), figsize=size, squeeze=False)
    for row, share in zip(axes, shares, strict=True):
        for ax, (kind, name) in zip(row, kinds.items(), strict=True):
            _frontier(ax, points_of(records, kind), ours, share, f"{name}, further trained for {share:.0%} of a training")
        row[0].set_ylabel("mean test accuracy")
    return fig


def costs_of(records: Sequence[Mapping], kind: str) -> dict[tuple[str, float], float]:
    """Processor time of one network by (method, share), sampling included, as a share of a training from scratch."""
    seconds = {
        (record["method"], record["setting"]["share"]): record["value"]
        for record in records
        if record["quantity"] == "seconds_sample" and record["setting"]["zoo"] == kind
    }
    share = max(share for method, share in seconds if method == "fresh")
    scratch = seconds["fresh", share] / share
    return {key: value / scratch for key, value in seconds.items()}


def training_on(records: Sequence[Mapping], kinds: Mapping[str, str], starts: Sequence[str]) -> Figure:
    """Accuracy, spread and offset of some starts against all that a network costs, matching included; a row a kind of zoo."""
    panels = {"accuracy": "mean test accuracy", "spread": "spread", "offset": "offset"}
    fig, axes = plt.subplots(len(kinds), len(panels), figsize=(4.2 * len(panels), 3.2 * len(kinds)), squeeze=False, sharex=True)
    for row, (kind, title) in zip(axes, kinds.items(), strict=True):
        every, costs = points_of(records, kind), costs_of(records, kind)
        (held_out,) = (point for point in every if point.method == HELD_OUT)
        bands = {"accuracy": (held_out.accuracy + ACCURACY_GAIN, 1), "spread": SPREAD, "offset": (0, OFFSET)}
        for ax, (field, name) in zip(row, panels.items(), strict=True):
            ax.axhspan(*bands[field], color=GREEN, alpha=0.12, lw=0)
            for start in starts:
                mine = [point for point in every if point.method == start]
                curve = sorted((costs[start, point.share], getattr(point, field)) for point in mine)
                ax.plot(*zip(*curve, strict=True), color=colour_of(start), marker="o", lw=2, label=name_of(start))
            ax.set(title=f"{title}: {name}")
            # accuracies of untrained starts are left outside, so that a point can be seen
            ax.set_ylim((held_out.accuracy - 0.15, held_out.accuracy + 0.025) if field == "accuracy" else (0, None))
    axes[0, 0].legend(loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("processor time of a network \n(1: training from scratch)", fontsize=10)
    return fig
