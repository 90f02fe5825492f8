"""Drawings of notebook 01: where training goes, and what a seed, an initialisation and an epoch each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flownlib.plots.charts import strokes
from flownlib.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VIOLET, name_of


def training_paths(groups: Mapping[str, tuple[Tensor, Tensor]], explained: Sequence[float]) -> Figure:
    """Runs in one plane, a panel each group, and their accuracy by epoch.

    Args:
        groups: title → points [runs, epochs, 2] and test accuracy [runs, epochs], their colour; a large dot is an end.
        explained: share of the variance along each of the two axes.
    """
    fig, axes = plt.subplots(1, len(groups) + 1, figsize=(4.1 * len(groups) + 3.4, 3.9))
    style = {"cmap": "viridis", "clim": (0, 1)}
    for ax, colour, (name, (points, accuracy)) in zip(axes, (BLUE, ORANGE), groups.items(), strict=False):
        for run, values in zip(points.cpu().numpy(), accuracy.cpu().numpy(), strict=True):
            lines = LineCollection(list(np.stack([run[:-1], run[1:]], axis=1)), lw=2.5, **style)
            lines.set_array((values[:-1] + values[1:]) / 2)
            ax.add_collection(lines)
            ends = run[[0, -1]].T
            ax.scatter(*ends, c=values[[0, -1]], s=(35, 90), edgecolors=INK, lw=1.2, zorder=3, cmap="viridis", vmin=0, vmax=1)
        ax.set(title=name, xlabel=f"first principal axis ({explained[0]:.0%} of the variance)")
        axes[-1].plot(accuracy.T.cpu().numpy(), color=colour, lw=1.2, alpha=0.8)
        axes[-1].plot([], [], color=colour, lw=2, label=name)
    limits = [np.concatenate([points[..., axis].flatten() for points, _ in groups.values()]) for axis in (0, 1)]
    for ax in axes[:-1]:
        ax.set(xlim=(limits[0].min() - 0.6, limits[0].max() + 0.6), ylim=(limits[1].min() - 0.6, limits[1].max() + 0.6))
    axes[0].set_ylabel(f"second principal axis ({explained[1]:.0%})")
    fig.colorbar(lines, ax=axes[:-1].tolist(), label="test accuracy", shrink=0.85)
    axes[-1].set(title="test accuracy by epoch", xlabel="epoch", ylim=(0, 1))
    axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[-1].legend(loc="lower right")
    return fig


def what_changes(pairs: Mapping[str, tuple[Tensor, Tensor]], by_chance: float | None = None) -> Figure:
    """Pairs of networks of several kinds: distance over norm against the share of errors that only one of the two makes.

    `by_chance`, where given, is that share for two networks that err independently of each other.
    """
    fig, ax = plt.subplots(figsize=(7.5, 4.0))
    for color, (name, (distance, difference)) in zip((GREEN, ORANGE, BLUE), pairs.items(), strict=False):
        ax.scatter(distance.cpu().numpy(), difference.cpu().numpy(), s=16, color=color, alpha=0.6, lw=0)
        x, y, below = distance.mean().item(), difference.mean().item(), difference.min().item() - 0.03
        ax.scatter(x, y, s=110, color=color, edgecolors=INK, zorder=3)
        ax.annotate(name, (max(x, 0.2), below), color=color, ha="center", va="top")
    if by_chance is not None:
        ax.axhline(by_chance, color=GREY, lw=1.2, ls="--")
        ax.annotate("if they erred independently", (0.02, by_chance - 0.02), color=INK, fontsize=10, va="top")
    ax.set(xlabel="distance between two networks / their norm", ylabel="share of errors not in common", ylim=(0, 1))
    ax.set_xlim(0, 1.1 * max(distance.max().item() for distance, _ in pairs.values()))
    return fig


def accuracy_by_task(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> Figure:
    """One stroke a network, tasks from hard to easy, and a diamond at each task's mean; coloured by group: name → its tasks."""
    named = {task: group for group, tasks in groups.items() for task in tasks}
    table = table.assign(networks=table["task"].map(named), task=table["task"].map(name_of))
    means = table.groupby("task")["test_accuracy"].mean().sort_values()
    fig, ax = plt.subplots(figsize=(8.5, 0.36 * len(means) + 1))
    palette = dict(zip(groups, (BLUE, ORANGE, VIOLET), strict=False))
    strokes(ax, table, "test_accuracy", "task", "networks", palette, order=means.index, alpha=0.9)
    ax.scatter(means, range(len(means)), marker="D", s=30, color=INK, zorder=3, label="mean")
    ax.set(xlabel="test accuracy", ylabel="")
    ax.grid(axis="y")
    ax.set_ylim(len(means) - 0.5, -0.5)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return fig


def hyper_parameter_effects(table: pd.DataFrame) -> Figure:
    """Test accuracy against learning rate, weight decay and share of the images; crosses are networks that diverged."""
    axes_names = {"learning_rate": "learning rate", "weight_decay": "weight decay", "data_fraction": "share of the images"}
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), sharey=True)
    fine, gone = table[~table["diverged"]], table[table["diverged"]]
    for ax, (column, label) in zip(axes, axes_names.items(), strict=True):
        ax.scatter(fine[column], fine["test_accuracy"], s=22, color=BLUE, alpha=0.75, lw=0)
        ax.scatter(gone[column], gone["test_accuracy"], s=30, color=ORANGE, marker="x")
        ax.set(xlabel=label, xscale="linear" if column == "data_fraction" else "log")
        ax.grid(axis="y")
    axes[0].set_ylabel("test accuracy")
    return fig
