"""Figures of notebook 06, pure functions: what an audit found in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.extensions.audit import COPY, NEAR, Audit, Likelihoods, TaskAudit
from flownlib.plots.style import GREY, INK, PALETTE
from flownlib.weights import Layout

SAMPLES, UNSEEN, TRAINING = PALETTE[1], PALETTE[0], GREY


def nearest_histograms(audits: Sequence[Audit], task: str) -> Figure:
    """Distance to the nearest training network, a row a generator: its samples above, held-out networks below the line."""
    top = max(float(found.tasks[task].samples.nearest.max()) for found in audits)
    bins = np.linspace(0, max(1.25, 1.05 * top), 64)
    fig, axes = plt.subplots(len(audits), 1, figsize=(8.5, 0.72 * len(audits) + 0.9), sharex=True, squeeze=False)
    for ax, found in zip(axes[:, 0], audits, strict=True):
        for sign, color, judged in ((1, SAMPLES, found.tasks[task].samples), (-1, UNSEEN, found.tasks[task].held_out)):
            counts = np.histogram(judged.nearest.numpy(), bins)[0]
            ax.bar(bins[:-1], sign * counts / counts.max(), np.diff(bins), align="edge", color=color, lw=0)
        ax.axhline(0, color=INK, lw=0.8)
        ax.set(ylim=(-1.1, 1.1), yticks=[], xlim=(bins[0] - 0.02, bins[-1]))
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.tick_params(bottom=found is audits[-1])
        ax.set_ylabel(found.name, rotation=0, ha="right", va="center", fontsize=10)
        for limit in (COPY, NEAR):
            ax.axvline(limit, color=GREY, lw=1, ls="--")
    axes[-1, 0].set_xlabel("distance to the nearest training network (1 = held-out networks; dashed: the audit's thresholds)")
    _named(axes[0, 0], {"samples (upwards)": SAMPLES, "held-out networks (downwards)": UNSEEN})
    return fig


def _named(ax: Axes, colors: Mapping[str, str]) -> None:
    for name, color in colors.items():
        ax.scatter([], [], s=40, marker="s", color=color, label=name)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(colors), fontsize=10, handletextpad=0.2)


def overlap_against_accuracy(audits: Sequence[Audit], task: str) -> Figure:
    """Error overlap with the most similar training network against accuracy, a panel a generator, over the training cloud."""
    columns = min(len(audits), 3)
    rows = -(-len(audits) // columns)
    size = (3.3 * columns, 2.9 * rows + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, found in zip(axes.flat, audits, strict=False):
        one = found.tasks[task]
        clouds = (
            (TRAINING, 22, one.reference.scores.accuracy, one.training_overlap),
            (SAMPLES, 16, one.samples.test.accuracy, one.samples.overlap),
            (UNSEEN, 22, one.held_out.test.accuracy, one.held_out.overlap),
        )
        for color, area, accuracy, overlap in clouds:
            ax.scatter(accuracy.numpy(), overlap.numpy(), s=area, color=color, alpha=0.75, lw=0)
        ax.set_title(found.name, fontsize=11)
        ax.set(ylim=(0, 1.04))
    for ax in axes.flat[len(audits) :]:
        ax.axis("off")
    for ax in axes.flat[max(0, len(audits) - columns) : len(audits)]:
        ax.set_xlabel("test accuracy")
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("error overlap")
    marks = {"training networks": TRAINING, "samples": SAMPLES, "held-out networks": UNSEEN}
    handles = [ax.scatter([], [], s=40, marker="s", color=color, label=name) for name, color in marks.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=10, handletextpad=0.2)
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
    fig, axes = plt.subplots(
        len(lines), len(tensors), figsize=(10, 0.4 * len(lines) + 0.7), gridspec_kw={"width_ratios": shown, "wspace": 0.02}
    )
    for column, ((name, place), count) in enumerate(zip(tensors, shown, strict=True)):
        chosen = torch.linspace(place.start, place.stop - 1, count).round().long()
        for ax, line in zip(axes[:, column], lines, strict=True):
            ax.imshow(line[chosen][None].numpy(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0, column].set_title(name.removesuffix(".weight"), fontsize=10)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for ax, note in zip(axes[:, -1], notes, strict=True):
        ax.annotate(note, (1, 0.5), (6, 0), "axes fraction", "offset points", va="center", fontsize=10)
    return fig


def likelihood_histograms(found: Mapping[str, Likelihoods]) -> Figure:
    """Log-likelihoods of training and held-out networks, a panel a task, in nats relative to the training networks' mean."""
    fig, axes = plt.subplots(1, len(found), figsize=(2.5 * len(found), 2.7), sharey=True, squeeze=False)
    for ax, (task, likelihoods) in zip(axes[0], found.items(), strict=True):
        middle = likelihoods.training.mean()
        values = [(likelihoods.training - middle).numpy(), (likelihoods.held_out - middle).numpy()]
        bins = np.histogram_bin_edges(np.concatenate(values), 24)
        for color, name, part in ((TRAINING, "training", values[0]), (UNSEEN, "held out", values[1])):
            ax.hist(part, bins, density=True, color=color, alpha=0.7, lw=0, label=f"{name} ({len(part)})")
        ax.set(title=f"{task}: {likelihoods.advantage:.2f}", xlabel="log-likelihood, nats", yticks=[])
        ax.locator_params(axis="x", nbins=3)
        ax.spines["left"].set_visible(False)
    axes[0, 0].legend(fontsize=9, loc="upper left")
    return fig


def accuracy_and_novelty(table: pd.DataFrame) -> Figure:
    """Mean accuracy against mean nearest distance, a dot a method with its tasks as faint dots, its area the spread.

    The line joins the nulls that no other null beats in both: their frontier.

    Args:
        table: of `evaluation.compare`, with a further column `null`, True for what learns nothing.
    """
    columns = ["nearest_training_distance", "test_accuracy_mean", "spread", "null"]
    means = table.groupby("method", sort=False)[columns].mean()
    fig, ax = plt.subplots(figsize=(8.5, 5))
    for method, (distance, accuracy, spread, null) in means.iterrows():
        color = INK if method == "zoo_held_out" else PALETTE[1] if null else PALETTE[0]
        rows = table[table["method"] == method]
        ax.scatter(rows[columns[0]], rows[columns[1]], s=9, color=color, alpha=0.45, lw=0)
        ax.scatter(distance, accuracy, s=30 + 130 * min(spread, 1.5), color=color, alpha=0.8, lw=0)
    edge = frontier_of(means[means["null"] == 1][columns[:2]].to_numpy())
    ax.plot(*edge.T, color=PALETTE[1], lw=1.4, ls="--", zorder=0)
    _name_points(ax, means[columns[:2]])
    ax.set(xlabel="distance to the nearest training network (1 = held-out networks)", ylabel="mean test accuracy")
    ax.margins(x=0.1, y=0.1)
    _named(ax, {"held-out networks": INK, "learned": PALETTE[0], "nulls, and their frontier": PALETTE[1]})
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
        ax.annotate(method, point, (9, (7, -15, 20, -28, 33)[min(near, 4)]), textcoords="offset points", fontsize=9)
        named.append((x, y))
