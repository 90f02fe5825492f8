"""Figures of notebook 03: lines that cross and ways that do not, paths, and what each choice does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.flow import StraightPath
from flownlib.plots.style import GREY, INK, PALETTE

# what lies outside is not worth the room that it would take
LIMITS = {"test_accuracy_mean": (0, 1), "spread": (0, 1.5), "offset": (0, 1.5), "nearest_training_distance": (0, 1.5)}


def _ways(ax: Axes, ways: Tensor, colours: Sequence[str], alpha: float = 0.5) -> None:
    """Ways [s, n, 2] as lines, from a grey dot to a coloured one."""
    ax.add_collection(LineCollection(ways.transpose(0, 1).numpy(), colors=colours, alpha=alpha, lw=0.8))
    ax.scatter(*ways[0].T.numpy(), s=7, color=GREY, lw=0)
    ax.scatter(*ways[-1].T.numpy(), s=10, c=colours, lw=0)
    ax.autoscale()
    ax.set(xticks=[], yticks=[])


def two_dimensions(x_0: Tensor, x_1: Tensor, tasks: Sequence[int], ways: Tensor, landed: Sequence[int]) -> Figure:
    """Left: random pairs [n, 2] joined by lines. Right: where a trained flow carries noise, ways [s, m, 2], by context."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
    _ways(axes[0], torch.stack([x_0, x_1]), [PALETTE[task] for task in tasks])
    _ways(axes[1], ways, [PALETTE[task] for task in landed])
    axes[0].set_title("what the flow is taught: pairs, and lines that cross")
    axes[1].set_title("what it learns: an average that does not")
    for ax in axes:
        ax.spines[:].set_visible(False)
    return fig


def path_shapes(paths: Mapping[str, StraightPath], x_0: Tensor, x_1: Tensor, stops: int = 41) -> Figure:
    """Each path between the same pairs [n, 2], and the norm of x_t along it, averaged over Gaussian pairs in 64 dimensions."""
    fig, axes = plt.subplots(1, len(paths) + 1, figsize=(3.4 * (len(paths) + 1), 3.2))
    far = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    for i, (ax, (name, path)) in enumerate(zip(axes, paths.items(), strict=False)):
        times = torch.linspace(0, 1, stops)
        ways = torch.stack([path.sample(x_0, x_1, t.expand(len(x_0))).x_t for t in times])
        _ways(ax, ways, [PALETTE[i]] * len(x_0), alpha=0.8)
        ax.set_title(name.replace("_", " "))
        norms = [path.sample(*far, t.expand(500)).x_t.norm(dim=1).mean() / 8 for t in times]
        axes[-1].plot(times.numpy(), torch.stack(norms).numpy(), color=PALETTE[i], lw=2, label=name.replace("_", " "))
    axes[-1].set(xlabel="t", ylim=(0, 1.1), title="norm of $x_t$ (noise and data: 1)")
    axes[-1].legend(fontsize=9, loc="lower left")
    return fig


def dispersion(losses: Sequence[float], dispersions: Sequence[tuple[int, float]]) -> Figure:
    """The loss, smoothed, and beside it how far samples lie apart, in units of the data's."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
    window = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes[0].plot(np.arange(len(smooth)) + window, smooth, color=PALETTE[0])
    axes[0].set(xlabel="training step", title="flow-matching loss")
    if dispersions:
        axes[1].plot(*zip(*dispersions, strict=True), marker="o", color=PALETTE[1])
    axes[1].axhline(1, color=GREY, lw=1, ls="--")
    axes[1].set(xlabel="training step", ylim=(0, None), title="dispersion of samples within a task (data: 1)")
    return fig


def choices(
    records: Sequence[Mapping], steps: Sequence[int], names: Mapping[str, str], quantities: Mapping[str, str]
) -> Figure:
    """A study's records: one row a choice, one panel a quantity, one dot with its interval for each number of solver steps."""
    fig, axes = plt.subplots(1, len(quantities), figsize=(4.6 * len(quantities), 0.42 * len(names) + 1.3), sharey=True)
    for ax, (quantity, title) in zip(np.atleast_1d(axes), quantities.items(), strict=True):
        for place, method in enumerate(names):
            for shift, count in enumerate(steps):
                for record in records:
                    if (record["quantity"], record["method"], record["setting"]["steps"]) == (quantity, method, count):
                        y = place + 0.18 * (shift - (len(steps) - 1) / 2)
                        ax.plot([record["low"], record["high"]], [y, y], color=PALETTE[shift], lw=1.6)
                        ax.scatter(record["value"], y, s=18, color=PALETTE[shift], zorder=3)
        ax.set_title(title, fontsize=11)
        ax.set_xlim(LIMITS.get(quantity, (None, None)))
        ax.grid(axis="x", color="#e8ecef")
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(names)), names.values())
    first.invert_yaxis()
    handles = [plt.Line2D([], [], color=PALETTE[i], marker="o", lw=1.6) for i in range(len(steps))]
    labels = [f"{count} step{'s' * (count > 1)}" for count in steps]
    fig.legend(handles, labels, loc="outside lower center", ncols=len(steps), fontsize=9)
    return fig


def method_study(records: Sequence[Mapping], kind: str, measures: Mapping[str, float | None], order: Sequence[str]) -> Figure:
    """A study's records of one kind of zoo: methods down the side, one panel a measure, dots with intervals over seeds."""
    fig, axes = plt.subplots(1, len(measures), figsize=(2.7 * len(measures), 0.3 * len(order) + 1.2), sharey=True)
    for ax, (measure, ideal) in zip(axes, measures.items(), strict=True):
        if ideal is not None:
            ax.axvline(ideal, color=GREY, lw=1, ls="--")
        for record in records:
            if record["quantity"] == measure and record["setting"]["zoo"] == kind and record["method"] in order:
                place = order.index(record["method"])
                color = INK if place == 0 else PALETTE[0] if "flow" in record["method"] else PALETTE[1]
                ax.plot([record["low"], record["high"]], [place, place], color=color, lw=1.6, alpha=0.8)
                ax.scatter(record["value"], place, s=20, color=color, zorder=3)
        ax.set_title(measure.replace("_", " ").replace("test accuracy ", "accuracy, "), fontsize=10)
        ax.grid(axis="x", color="#e8ecef")
        ax.set_xlim(LIMITS.get(measure, (0, None)))
    axes[0].set_yticks(range(len(order)), [name.replace("_", " ") for name in order], fontsize=9)
    axes[0].invert_yaxis()
    return fig
