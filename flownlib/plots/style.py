"""Pure drawing functions: data in, Figure out. One palette, one style, no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from flownlib.scoring import Task

INK, GREY = "#22303c", "#9aa5ad"
PALETTE = ["#2a6f97", "#e07a5f", "#5a9367", "#8f5ba8", "#d9a441", "#4cb0af", "#b0413e", "#6c757d"]


def use_style() -> None:
    """The tutorial's look: quiet axes, one palette, type that is readable at 80 dpi."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "text.color": INK,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "legend.frameon": False,
            "font.size": 11,
        }
    )


def free_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose axes stay where they are put: a layout engine would take most of a redraw."""
    fig = plt.figure(figsize=(width, height), layout="constrained")
    fig.set_layout_engine("none")  # layout="none" in the line above would be forgotten by savefig(bbox_inches="tight")
    return fig


def glyphs(ax: Axes, images: Tensor) -> None:
    """Images [rows, columns, h, w] as one picture without axes, in eight greys: more would make a large file of noise."""
    picture = torch.cat([torch.cat(list(row), dim=1) for row in images]).numpy()
    ax.imshow(picture, cmap=plt.get_cmap("gray_r", 8), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def task_images(tasks: Mapping[str, Task], per_class: int = 2) -> Figure:
    """A strip of training images for each task, its classes from left to right."""
    fig, axes = plt.subplots(len(tasks), 1, figsize=(9.5, 0.62 * len(tasks)))
    for ax, (name, task) in zip(np.atleast_1d(axes), tasks.items(), strict=True):
        chosen = [task.train.x[(task.train.y == label).nonzero()[:per_class, 0], 0] for label in range(task.num_classes)]
        glyphs(ax, torch.cat(chosen)[None])
        ax.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    return fig


def accuracy_by_task(table: pd.DataFrame, highlight: Sequence[str]) -> Figure:
    """One dot a network, tasks from hard to easy; highlighted tasks are coloured, with the mean as a bar."""
    order = table.groupby("task")["test_accuracy"].mean().sort_values().index
    fig, ax = plt.subplots(figsize=(8.5, 0.36 * len(order) + 1))
    jitter = np.random.default_rng(0)
    for place, task in enumerate(order):
        values = table.loc[table["task"] == task, "test_accuracy"].to_numpy()
        color = PALETTE[0] if task in highlight else PALETTE[1]
        ax.scatter(values, place + jitter.uniform(-0.18, 0.18, len(values)), s=9, color=color, alpha=0.55, lw=0)
        ax.plot([values.mean()] * 2, [place - 0.34, place + 0.34], color=INK, lw=2)
    ax.set_yticks(range(len(order)), [task.replace("_", " ") for task in order])
    ax.set(xlabel="test accuracy")
    ax.grid(axis="x", color="#e8ecef")
    ax.scatter([], [], s=20, color=PALETTE[0], label="in distribution")
    ax.scatter([], [], s=20, color=PALETTE[1], label="held out")
    ax.legend(loc="lower right")
    return fig


def timing_bars(rates: Mapping[str, Sequence[float]]) -> Figure:
    """Model-steps per CPU-second, one bar a way of training, with every repeat as a dot."""
    fig, ax = plt.subplots(figsize=(7, 0.6 * len(rates) + 0.9))
    for place, values in enumerate(rates.values()):
        ax.barh(place, np.mean(values), color=PALETTE[place], height=0.55, alpha=0.9)
        ax.scatter(values, [place] * len(values), s=16, color=INK, zorder=3)
    ax.set_yticks(range(len(rates)), list(rates))
    ax.invert_yaxis()
    ax.set(xlabel="optimiser steps of one network per CPU-second")
    return fig


def paths_between(curves: Mapping[str, Tensor]) -> Figure:
    """Accuracy along the straight line between pairs of networks: mean and middle 80 % of the pairs [pairs, points]."""
    fig, ax = plt.subplots(figsize=(7.5, 3.6))
    for color, (name, curve) in zip(PALETTE, curves.items(), strict=False):
        share = np.linspace(0, 1, curve.shape[1])
        low, high = np.quantile(curve.numpy(), [0.1, 0.9], axis=0)
        ax.plot(share, curve.mean(0).numpy(), color=color, lw=2.2, label=name)
        ax.fill_between(share, low, high, color=color, alpha=0.13, lw=0)
    ax.set(xlabel="share of the second network", ylabel="test accuracy", ylim=(0, 1))
    ax.legend(loc="lower right", fontsize=10)
    return fig


def filters(weights: Tensor, titles: Sequence[str]) -> Figure:
    """First-layer filters [m, f, k, k] of m networks, one row each, on a common colour scale."""
    m, count = weights.shape[:2]
    limit = float(weights.abs().max())
    fig, axes = plt.subplots(m, count, figsize=(0.72 * count + 1.6, 0.78 * m), squeeze=False)
    for row, title in enumerate(titles):
        for column in range(count):
            ax = axes[row, column]
            ax.imshow(weights[row, column].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
    return fig


def filter_strip(ax: Axes, filters: Tensor) -> AxesImage:
    """The filters [f, k, k] of one network side by side: one picture with white gaps, drawn sooner than f axes."""
    size = filters.shape[-1]
    strip = torch.full((size, len(filters) * (size + 1) - 1), float("nan"))
    for i, kernel in enumerate(filters):
        strip[:, i * (size + 1) : i * (size + 1) + size] = kernel
    limit = float(filters.abs().max())
    ax.set_title("decoded first-layer filters", fontsize=10)
    ax.axis("off")
    return ax.imshow(strip.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)


def prediction_bars(pictures: Axes, bars: Axes, images: Tensor, answers: Tensor, probabilities: Tensor) -> None:
    """Images [n, h, w] above their class probabilities [n, classes], the right class in green."""
    pictures.imshow(torch.cat(list(images), dim=1).numpy(), cmap="gray_r", aspect="auto")
    pictures.axis("off")
    bars.set(xlim=(0, len(images)), ylim=(0, 1), xticks=[], yticks=[])
    probability_lines(bars, answers, probabilities)


def probability_lines(ax: Axes, answers: Tensor, probabilities: Tensor) -> LineCollection:
    """Class probabilities [n, classes] as lines, for one collection is drawn far sooner than a patch for every bar."""
    count, classes = probabilities.shape
    places = torch.arange(count)[:, None] + (torch.arange(classes) + 0.5) / (classes + 1)
    right = torch.arange(classes) == answers[:, None]
    colors = [PALETTE[2] if r else GREY for r in right.flatten()]
    return ax.vlines(places.flatten().numpy(), 0, probabilities.flatten().numpy(), colors=colors, linewidth=4)


def projection(points: Tensor, labels: Sequence[str], note: str = "principal coordinate") -> Figure:
    """Points [n, 2] coloured by label."""
    fig, ax = plt.subplots(figsize=(5.6, 4.4))
    for color, name in zip(PALETTE, dict.fromkeys(labels), strict=False):
        rows = torch.tensor([label == name for label in labels])
        ax.scatter(*points[rows].T.numpy(), s=14, color=color, alpha=0.7, lw=0, label=name)
    ax.set(xlabel=f"first {note}", ylabel=f"second {note}")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def learning_curves(history: Sequence[Mapping[str, float]], window: int = 25) -> Figure:
    """Loss terms over steps on a log scale, smoothed by a moving mean."""
    fig, ax = plt.subplots(figsize=(7, 3))
    for color, name in zip(PALETTE, history[0], strict=False):
        values = pd.Series([step[name] for step in history]).rolling(window, min_periods=1).mean()
        ax.plot(values, color=color, label=name, lw=1.8)
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.legend()
    return fig


def before_after(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Figure:
    """Each network's accuracy before and after something was done to it, one panel a setting; the diagonal means no change."""
    fig, axes = plt.subplots(1, len(before), figsize=(3.3 * len(before), 3.3), sharex=True, sharey=True, squeeze=False)
    for ax, color, (name, x) in zip(axes[0], PALETTE, before.items(), strict=False):
        ax.plot([0, 1], [0, 1], color=GREY, lw=1)
        ax.scatter(x.numpy(), after[name].numpy(), s=14, color=color, alpha=0.7, lw=0)
        ax.set(title=name, xlabel="original", xlim=(0, 1), ylim=(0, 1))
    axes[0, 0].set_ylabel("test accuracy, decoded")
    return fig


def method_bars(table: pd.DataFrame, measures: Mapping[str, float | None]) -> Figure:
    """Methods down the side, one panel a measure: a dot for each task and a bar at the mean; a line at what is ideal."""
    methods = list(dict.fromkeys(table["method"]))
    fig, axes = plt.subplots(1, len(measures), figsize=(3.1 * len(measures), 0.36 * len(methods) + 1.2), sharey=True)
    for ax, (measure, ideal) in zip(np.atleast_1d(axes), measures.items(), strict=True):
        if ideal is not None:
            ax.axvline(ideal, color=GREY, lw=1, ls="--")
        for place, method in enumerate(methods):
            values = table.loc[table["method"] == method, measure]
            color = INK if method == "zoo_held_out" else PALETTE[0] if "flow" in method else PALETTE[1]
            ax.scatter(values, [place] * len(values), s=18, color=color, alpha=0.6, lw=0)
            ax.plot([values.mean()] * 2, [place - 0.32, place + 0.32], color=color, lw=2.4)
        ax.set_title(measure.replace("_", " "), fontsize=10)
        ax.grid(axis="x", color="#e8ecef")
    np.atleast_1d(axes)[0].set_yticks(range(len(methods)), methods)
    np.atleast_1d(axes)[0].invert_yaxis()
    return fig
