"""Drawings of notebook 01: where training goes, and what a seed, an initialisation and an epoch each change."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.plots.style import BLUE, INK, ORANGE, PALETTE


def training_paths(groups: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Runs in one plane, a panel each group: points [runs, epochs, 2], coloured by accuracy [runs, epochs].

    A ring marks where a run starts, a dot where it ends.
    """
    fig, axes = plt.subplots(1, len(groups), figsize=(4.6 * len(groups), 3.9), sharex=True, sharey=True, squeeze=False)
    for ax, (name, (points, accuracy)) in zip(axes[0], groups.items(), strict=True):
        for run, values in zip(points.cpu().numpy(), accuracy.cpu().numpy(), strict=True):
            segments = np.stack([run[:-1], run[1:]], axis=1)
            lines = LineCollection(list(segments), cmap="viridis", lw=2, clim=(0, 1))
            lines.set_array(values[1:])
            ax.add_collection(lines)
            ax.scatter(*run[0], s=45, facecolors="white", edgecolors=INK, lw=1.2, zorder=3)
            ax.scatter(*run[-1], s=26, color=INK, zorder=3)
        ax.autoscale()
        ax.margins(0.08)
        ax.set(title=name, xlabel="first principal axis")
    axes[0, 0].set_ylabel("second principal axis")
    fig.colorbar(lines, ax=axes[0].tolist(), label="test accuracy", shrink=0.85)
    return fig


def what_changes(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Pairs of networks of several kinds: distance over norm against the share of errors that only one of the two makes."""
    fig, ax = plt.subplots(figsize=(7.5, 3.8))
    for color, (name, (distance, difference)) in zip(PALETTE, pairs.items(), strict=False):
        ax.scatter(distance.cpu().numpy(), difference.cpu().numpy(), s=14, color=color, alpha=0.5, lw=0)
        ax.scatter(distance.mean().item(), difference.mean().item(), s=110, color=color, edgecolors=INK, zorder=3, label=name)
    ax.set(xlabel="distance between two networks / their norm", ylabel="errors not in common", xlim=(0, None), ylim=(0, 1))
    ax.legend(loc="lower right")
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
