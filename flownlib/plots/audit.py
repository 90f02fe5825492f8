"""Figures of notebook 06, pure functions: what an audit found in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.extensions.audit import COPY, NEAR, Audit, Likelihoods, TaskAudit
from flownlib.plots.charts import strokes
from flownlib.plots.style import BLUE, GREY, INK, ORANGE, PALE, bare, colour_of, name_of
from flownlib.weights import Layout

NETWORKS = {"training networks": GREY, "samples": BLUE, "held-out networks": INK}


def _distributions(parts: Mapping[tuple[str, str], Tensor], xlabel: str) -> Axes:
    """Values by (row, kind of networks), a stroke a network, the first kind above the second."""
    columns = ("row", "networks", "value")
    table = pd.DataFrame([(*key, value) for key, values in parts.items() for value in values.tolist()], columns=columns)
    palette = {kind: NETWORKS[kind] for kind in dict.fromkeys(table["networks"])}
    _, ax = plt.subplots(figsize=(9, 0.6 * table["row"].nunique() + 1))
    strokes(ax, table, "value", "row", "networks", palette, dodge=True)
    ax.set(xlabel=xlabel, ylabel="")
    for line in range(table["row"].nunique() - 1):
        ax.axhline(line + 0.5, color=PALE, lw=1.5, zorder=0)
    ax.tick_params(axis="y", length=0)
    sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, title=None)
    return ax


def nearest_histograms(audits: Sequence[Audit], task: str) -> Figure:
    """Distance to the nearest training network, a row a generator: a stroke a sample, below them held-out networks."""
    parts = {}
    for audit in audits:
        found = audit.tasks[task]
        parts[name_of(audit.name), "samples"] = found.samples.nearest
        parts[name_of(audit.name), "held-out networks"] = found.held_out.nearest
    ax = _distributions(
        parts, "distance to the nearest training network (1: held-out networks; dashed: the audit's thresholds)"
    )
    for limit in (COPY, NEAR):
        ax.axvline(limit, color=GREY, lw=1, ls="--", zorder=0)
    return ax.figure


def likelihood_histograms(likelihoods: Mapping[str, Likelihoods]) -> Figure:
    """Log-likelihoods about the training networks' mean, a row a task, with how often training networks have the higher."""
    parts = {}
    for task, found in likelihoods.items():
        row, middle = f"{name_of(task)}: {found.advantage:.2f}", found.training.mean()
        parts[row, "training networks"] = found.training - middle
        parts[row, "held-out networks"] = found.held_out - middle
    return _distributions(parts, "log-likelihood minus the training networks' mean, nats").figure


def overlap_against_accuracy(audits: Sequence[Audit], task: str) -> Figure:
    """Error overlap with the most similar training network against accuracy, a panel a generator, over the training cloud."""
    columns = min(len(audits), 3)
    rows = -(-len(audits) // columns)
    size = (3.3 * columns, 2.7 * rows + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, audit in zip(axes.flat, audits, strict=False):
        found = audit.tasks[task]
        clouds = (
            (found.reference.scores.accuracy, found.training_overlap),
            (found.samples.test.accuracy, found.samples.overlap),
            (found.held_out.test.accuracy, found.held_out.overlap),
        )
        for (name, colour), (accuracy, overlap) in zip(NETWORKS.items(), clouds, strict=True):
            ax.scatter(accuracy.cpu(), overlap.cpu(), s=20, color=colour, alpha=0.75, lw=0, label=name, clip_on=False)
        ax.set_title(name_of(audit.name), fontsize=11)
        ax.set(ylim=(0, 1))
    for ax in axes.flat[len(audits) :]:
        ax.axis("off")
    fig.supxlabel("test accuracy")
    fig.supylabel("error overlap")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, markerscale=1.6)
    return fig


def weights_beside_neighbours(found: TaskAudit, sample: int, layout: Layout, numbers: int = 240) -> Figure:
    """One sample, its three nearest training networks, and its differences from each: a row each, the layers marked.

    The weights are standardised; for each difference the sample's hidden units are put in that training network's order.
    Of a layer with more than `numbers` weights that many are shown, evenly spaced. Behind each difference: its distance.
    """
    space, around = found.reference.around.space, found.reference.around
    neighbours = found.samples.neighbours.row[sample].tolist()
    distances = [f"{distance:.2f}" for distance in found.samples.neighbours.distance[sample].tolist()]
    own = found.samples.canonical[sample : sample + 1]
    sample_rows = torch.cat([space.encode(around.matched(own, row)) for row in neighbours])
    training = space.encode(around.train.weights[neighbours])
    lines = torch.cat([sample_rows[:1], training, sample_rows - training])
    names = ["the sample", *(f"training {row}" for row in neighbours), *(f"sample − {row}" for row in neighbours)]
    return _strips(lines, names, [""] * 4 + distances, layout, numbers)


def _strips(lines: Tensor, names: Sequence[str], notes: Sequence[str], layout: Layout, numbers: int) -> Figure:
    tensors = [(name, place) for name, place in layout.slices().items() if name.endswith("weight")]
    shown = [min(place.stop - place.start, numbers) for _, place in tensors]
    grid = {"width_ratios": shown, "wspace": 0.02}
    fig, axes = plt.subplots(len(lines), len(tensors), figsize=(10, 0.4 * len(lines) + 0.7), gridspec_kw=grid)
    for column, ((name, place), count) in enumerate(zip(tensors, shown, strict=True)):
        weights = torch.linspace(place.start, place.stop - 1, count).round().long()
        for ax, line in zip(axes[:, column], lines, strict=True):
            ax.imshow(line[weights][None].cpu(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
            bare(ax)
        axes[0, column].set_title(name.removesuffix(".weight"), fontsize=10)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for ax, note in zip(axes[:, -1], notes, strict=True):
        ax.annotate(note, (1, 0.5), (6, 0), "axes fraction", "offset points", va="center", fontsize=10)
    return fig


def accuracy_and_novelty(table: pd.DataFrame) -> Figure:
    """Mean accuracy against mean nearest distance, a dot a method with its tasks as faint dots, its area the spread.

    The line joins the nulls that no other null beats in both: their frontier.

    Args:
        table: of `evaluation.compare`, with a further column `null`, True for what learns nothing.
    """
    columns = ["nearest_training_distance", "test_accuracy_mean"]
    means = table.groupby("method", sort=False)[[*columns, "spread", "null"]].mean()
    fig, ax = plt.subplots(figsize=(8.5, 5))
    ax.scatter(*table[columns].T.to_numpy(), s=9, c=table["method"].map(colour_of), alpha=0.45, lw=0)
    areas = 30 + 130 * means["spread"].clip(upper=1.5)
    ax.scatter(*means[columns].T.to_numpy(), s=areas, c=means.index.map(colour_of), alpha=0.8, lw=0)
    edge = frontier_of(means[means["null"] == 1][columns].to_numpy())
    ax.plot(*edge.T, color=ORANGE, lw=1.4, ls="--", zorder=0, label="frontier of the nulls")
    _name_points(ax, means[columns])
    ax.set(xlabel="distance to the nearest training network (1: held-out networks)", ylabel="mean test accuracy")
    ax.margins(x=0.1, y=0.1)
    ax.legend(loc="lower left")
    return fig


def frontier_of(points: np.ndarray) -> np.ndarray:
    """Of points [n, 2], those that no other exceeds in both numbers, by their first number: [m, 2]."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    best_from = np.maximum.accumulate(ordered[::-1, 1])[::-1]
    return ordered[ordered[:, 1] > np.append(best_from[1:], -np.inf)]


def _name_points(ax: Axes, points: pd.DataFrame) -> None:
    """Names beside points; of several close together each takes the next free place above or below."""
    spans, named = points.max() - points.min() + 1e-9, []
    for method, point in points.sort_values(points.columns[0]).iterrows():
        x, y = point / spans
        near = sum(abs(x - a) < 0.17 and abs(y - b) < 0.06 for a, b in named)
        offset = (9, (7, -15, 20, -28, 33)[min(near, 4)])
        ax.annotate(name_of(method), point, offset, textcoords="offset points", fontsize=9.5)
        named.append((x, y))
