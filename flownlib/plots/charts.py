"""The charts that several notebooks share: methods compared, training losses, accuracy along something, images, matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flownlib.plots.style import BLUE, GREY, PALE, PALETTE, bare, colour_of, glyphs, name_of
from flownlib.scoring import Task
from flownlib.statistics import mean_interval

Ideal = float | tuple[float, float] | None


@dataclass(frozen=True)
class Measure:
    """A panel of `comparison`: its title, the ideal as a line (a number) or a band (two), the axis' limits and scale.

    What lies above the limits is not worth the room that it would take: an arrow at the edge stands for it.
    """

    title: str
    ideal: Ideal = None
    limits: tuple[float | None, float | None] = (None, None)
    scale: str = "linear"


MEASURES = {
    "test_accuracy_mean": Measure("test accuracy", limits=(-0.03, 1.03)),
    "spread": Measure("spread\n(1: the zoo's)", 1.0, (-0.05, 1.5)),
    "offset": Measure("offset\n(0: the zoo's mean)", 0.0, (-0.05, 1.5)),
    "nearest_training_distance": Measure("nearest distance\n(0: a copy, 1: held out)", 1.0, (-0.05, 1.5)),
    "error_overlap": Measure("error overlap\n(1: a copy)", limits=(-0.03, 1.03)),
}


def frame(records: Sequence[Mapping]) -> pd.DataFrame:
    """The records of a results file, one a row, with their settings as further columns."""
    return pd.DataFrame([{**record, **record["setting"]} for record in records])


def comparison(
    table: pd.DataFrame,
    panels: Mapping[str, Measure],
    rows: Mapping[str, str] | Sequence[str] = (),
    *,
    panel: str = "quantity",
    row: str = "method",
    series: Mapping[object, str] | None = None,
    by: str = "steps",
    columns: int = 0,
    xlabel: str = "",
) -> Figure:
    """Methods down the side, one panel a measure, a dot with its 95 % interval for each; a line or a band at what is ideal.

    Args:
        table: columns `panel`, `row` and value, low, high; without the last two, several values of a cell are drawn as faint
            dots behind their mean and its interval. Colours follow the column "method", where there is one.
        panels: value in column `panel` → what is shown. rows: those shown, in order, or identifier → name; all by default.
        series: value in column `by` → name, for several dots a row. columns: panels beside each other; all by default.
    """
    names = rows if isinstance(rows, Mapping) else {key: name_of(key) for key in rows or dict.fromkeys(table[row])}
    columns = columns or len(panels)
    lines = -(-len(panels) // columns)
    width = 2.4 + min(8.4, 5 + 1.2 * columns)
    height = (0.16 + 0.13 * len(series or "a")) * len(names) + 0.7
    fig, axes = plt.subplots(lines, columns, figsize=(width, lines * height + 0.4), sharey=True, squeeze=False)
    for ax, (key, measure) in zip(axes.flat, panels.items(), strict=True):
        _rows(ax, len(names), measure)
        cells = table[(table[panel] == key) & table[row].isin(names)]
        for i, (value, name) in enumerate((series or {None: ""}).items()):
            shift = 0.7 * ((i + 0.5) / len(series) - 0.5) if series else 0.0
            part = cells[cells[by] == value] if series else cells
            places = [list(names).index(place) + shift for place in part[row]]
            methods = part["method"] if "method" in part else [""] * len(part)
            _intervals(ax, part, places, [PALETTE[i]] * len(part) if series else list(map(colour_of, methods)), name)
        _limit(ax, measure)
    axes[0, 0].set_yticks(range(len(names)), names.values())
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    if series:
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(series))
    (axes[0, 0].set_xlabel if len(panels) == 1 else fig.supxlabel)(xlabel)
    return fig


def _rows(ax: Axes, count: int, measure: Measure) -> None:
    for place in range(0, count, 2):
        ax.axhspan(place - 0.5, place + 0.5, color=PALE, lw=0, zorder=0)
    if isinstance(measure.ideal, tuple):
        ax.axvspan(*measure.ideal, color=GREY, alpha=0.4, lw=0)
    elif measure.ideal is not None:
        ax.axvline(measure.ideal, color=GREY, lw=1.2, ls="--", zorder=1)
    ax.set_title(measure.title, fontsize=10.5)
    ax.set_xscale(measure.scale)
    if measure.scale == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter("{x:g}")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _intervals(ax: Axes, cells: pd.DataFrame, places: Sequence[float], colours: Sequence[str], name: str) -> None:
    if "low" not in cells:
        ax.scatter(cells["value"], places, s=9, c=colours, alpha=0.45, lw=0)
        means = cells.assign(place=places, colour=colours).groupby(["place", "colour"])["value"]
        cells = pd.DataFrame([vars(mean_interval(values)) for _, values in means])
        places, colours = zip(*means.groups, strict=True)
    bounds = cells[["low", "high"]].astype(float).replace([-np.inf, np.inf], np.nan)
    ax.hlines(places, bounds["low"], bounds["high"], colors=colours, lw=2, alpha=0.75)
    ax.scatter(cells["value"], places, s=30, c=colours, lw=0, zorder=3, label=name)


def _limit(ax: Axes, measure: Measure) -> None:
    ax.set_xlim(*(asked if asked is not None else own for asked, own in zip(measure.limits, ax.get_xlim(), strict=True)))
    high = ax.get_xlim()[1]
    for dots in list(ax.collections):
        if isinstance(dots, PathCollection) and len(beyond := [y for x, y in dots.get_offsets() if x > high]):
            ax.scatter([high] * len(beyond), beyond, marker=">", s=30, color=dots.get_facecolor()[-1], clip_on=False)


def loss_curve(ax: Axes, losses: Sequence[float], label: str = "loss", colour: str = BLUE) -> None:
    """A loss at every step, faint, and its running mean over a fortieth of the steps."""
    smooth = pd.Series(losses).rolling(max(1, len(losses) // 40), center=True, min_periods=1).mean()
    ax.plot(losses, color=colour, lw=0.6, alpha=0.3)
    ax.plot(smooth, color=colour, lw=2)
    low, high = np.percentile(losses, [0.5, 99.5])
    room = 0.08 * (high - low) + 1e-12
    ax.set(xlabel="training step", ylabel=label, ylim=(min(low, smooth.min()) - room, max(high, smooth.max()) + room))


def learning_curves(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Training losses side by side, each on its own scale."""
    losses = dict(losses)  # a table's columns, by name
    fig, axes = plt.subplots(1, len(losses), figsize=(min(10, 2 + 3.2 * len(losses)), 2.8), squeeze=False)
    for ax, (name, values) in zip(axes[0], losses.items(), strict=True):
        loss_curve(ax, list(values), "")
        ax.set_title(name)
    axes[0, 0].set_ylabel("loss")
    return fig


def accuracy_curves(panels: Mapping[str, Mapping[str, Tensor | float]], stops: Sequence[int], xlabel: str) -> Figure:
    """Accuracy of methods at some stops, a panel a group: means with 95 % intervals.

    Args:
        panels: title → method → accuracies [stops, m], or one number, drawn as a dashed line.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(10, 4.4), squeeze=False)
    places = range(len(stops))
    for ax, (title, methods) in zip(axes[0], panels.items(), strict=True):
        for method, accuracy in methods.items():
            colour = colour_of(method)
            if not isinstance(accuracy, Tensor):
                ax.axhline(accuracy, color=colour, ls="--", lw=1.8, label=name_of(method))
                continue
            means = [mean_interval(row.numpy()) for row in accuracy]
            ax.plot(places, [mean.value for mean in means], "o-", color=colour, ms=4, lw=2, label=name_of(method))
            ax.fill_between(places, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.13, lw=0)
        ax.set(title=title, xlabel=xlabel)
        ax.set_xticks(places, stops)
    axes[0, 0].set_ylabel("test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def paths_between(curves: Mapping[str, Tensor]) -> Figure:
    """Accuracy along the straight line between pairs of networks: mean and middle 80 % of the pairs [pairs, points]."""
    fig, ax = plt.subplots(figsize=(7.5, 3.6))
    for colour, (name, curve) in zip(PALETTE, curves.items(), strict=False):
        share = np.linspace(0, 1, curve.shape[1])
        low, high = np.quantile(curve.numpy(), [0.1, 0.9], axis=0)
        ax.plot(share, curve.mean(0).numpy(), color=colour, lw=2.2, label=name.replace("_", " "))
        ax.fill_between(share, low, high, color=colour, alpha=0.13, lw=0)
    ax.set(xlabel="share of the second network", ylabel="test accuracy", ylim=(0, 1))
    ax.legend(loc="lower right")
    return fig


def strokes(ax: Axes, table: pd.DataFrame, x: str, y: str, hue: str, palette: Mapping[str, str], **style: object) -> None:
    """A stroke for each row of the table at its `x`, in a line for each `y`: distributions without bins or bandwidths."""
    style = {"jitter": False, "marker": "|", "s": 13, "linewidth": 1.1, "alpha": 0.5} | style
    sns.stripplot(table, x=x, y=y, hue=hue, palette=palette, ax=ax, **style)


def before_after(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Figure:
    """Each network's accuracy before and after something was done to it, one panel a setting; the diagonal means no change."""
    fig, axes = plt.subplots(1, len(before), figsize=(3.3 * len(before), 3.3), sharex=True, sharey=True, squeeze=False)
    for ax, (name, x) in zip(axes[0], before.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, lw=1)
        ax.scatter(x.numpy(), after[name].numpy(), s=16, color=BLUE, alpha=0.6, lw=0, clip_on=False)
        ax.set(title=name.replace("_", " "), xlabel="test accuracy, original", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes[0, 0].set_ylabel("test accuracy, decoded")
    return fig


def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Images [n, h, w], a row a name."""
    fig, axes = plt.subplots(len(rows), 1, figsize=(9.5, 0.65 * len(rows)), squeeze=False)
    for ax, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        glyphs(ax, images[None])
        ax.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    return fig


def task_images(tasks: Mapping[str, Task], per_class: int = 2) -> Figure:
    """A strip of training images for each task, its classes from left to right."""

    def first(task: Task) -> Tensor:
        return torch.cat([task.train.x[task.train.y == label][:per_class, 0] for label in range(task.num_classes)])

    return image_rows({name: first(task) for name, task in tasks.items()})


def matrices(shown: Mapping[str, Tensor], xlabel: str = "", ylabel: str = "", **style: object) -> Figure:
    """Matrices side by side, each on its own scale around zero; `style` goes to `seaborn.heatmap`."""
    fig, axes = plt.subplots(1, len(shown), figsize=(9.5, 2.7), sharey=True, squeeze=False)
    for ax, (title, matrix) in zip(axes[0], shown.items(), strict=True):
        limit = float(matrix.abs().quantile(0.99))
        sns.heatmap(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, xticklabels=8, yticklabels=False, ax=ax, **style)
        bare(ax)
        ax.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return fig
