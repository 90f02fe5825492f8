"""Figures of notebook 06, pure functions: what an audit found in, Figure out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor

from flownlib.evaluation import HELD_OUT
from flownlib.extensions.audit import COPY, NARROW, NEAR, Audit, Likelihoods, TaskAudit
from flownlib.plots.charts import strokes
from flownlib.plots.style import BLUE, GREY, INK, ORANGE, PALE, bare, colour_of, name_of
from flownlib.statistics import Interval, mean_interval
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
    ax = _distributions(parts, "distance to the nearest training network (1: held-out networks)")
    for limit, verdict in ((COPY, " memorises"), (NEAR, " near copies")):  # for medians left of the line
        ax.axvline(limit, color=GREY, lw=1, ls="--", zorder=0)
        ax.annotate(f"← {verdict}", (limit, 0), (0, 4), "data", "offset points", ha="right" if limit == NEAR else "left")
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
    """Error overlap with the most similar training network (for these: other one) against accuracy, a panel a generator."""
    columns = min(len(audits), 3)
    rows = -(-len(audits) // columns)
    size = (3.3 * columns, 2.7 * rows + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, audit in zip(axes.flat, audits, strict=False):
        found = audit.tasks[task]
        clouds = {  # size, face and edge: pale discs, rings and dots
            "training networks": (found.reference.scores.accuracy, found.training_overlap, 60, GREY, "none"),
            "held-out networks": (found.held_out.test.accuracy, found.held_out.overlap, 26, "none", INK),
            "samples": (found.samples.test.accuracy, found.samples.overlap, 13, BLUE, "none"),
        }
        for name, (x, y, area, face, edge) in clouds.items():
            ax.scatter(x.cpu(), y.cpu(), s=area, facecolor=face, edgecolor=edge, alpha=0.5, label=name, clip_on=False)
        ax.set_title(name_of(audit.name), fontsize=11)
        ax.set(ylim=(0, 1))
    for ax in axes.flat[len(audits) :]:
        ax.axis("off")
    fig.supxlabel("test accuracy")
    fig.supylabel("error overlap (1: the same errors)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def weights_beside_neighbours(found: TaskAudit, layout: Layout, numbers: int = 240) -> Figure:
    """The sample with the median distance, its three nearest training networks, and the differences: a row each, by layer.

    The weights are standardised; for each difference the sample's hidden units are put in that training network's order.
    Of a layer with more than `numbers` weights that many are shown, evenly spaced. Behind each difference: its distance.
    """
    space, around = found.reference.around.space, found.reference.around
    sample = int(found.samples.nearest.argsort()[len(found.samples.nearest) // 2])
    neighbours = found.samples.neighbours.row[sample].tolist()
    distances = [f"{distance:.2f}" for distance in found.samples.neighbours.distance[sample].tolist()]
    own = found.samples.canonical[sample : sample + 1]
    sample_rows = torch.cat([space.encode(around.matched(own, row)) for row in neighbours])
    training = space.encode(around.train.weights[neighbours])
    lines = torch.cat([sample_rows[:1], training, sample_rows - training])
    names = ["the sample", *(f"training {row}" for row in neighbours), *(f"sample − {row}" for row in neighbours)]
    return _strips(lines, names, [*["", "", ""], "distance", *distances], layout, numbers)


def _strips(lines: Tensor, names: Sequence[str], notes: Sequence[str], layout: Layout, numbers: int) -> Figure:
    tensors = [(name, place) for name, place in layout.slices().items() if name.endswith("weight")]
    shown = [min(place.stop - place.start, numbers) for _, place in tensors]
    grid = {"width_ratios": shown, "wspace": 0.02}
    fig, axes = plt.subplots(len(lines), len(tensors), figsize=(10, 0.4 * len(lines) + 1.2), gridspec_kw=grid)
    for column, ((name, place), count) in enumerate(zip(tensors, shown, strict=True)):
        weights = torch.linspace(place.start, place.stop - 1, count).round().long()
        for ax, line in zip(axes[:, column], lines, strict=True):
            picture, look = line[weights][None].cpu().numpy(), {"aspect": "auto", "interpolation": "nearest"}
            strip = ax.imshow(picture, cmap="RdBu_r", vmin=-2.5, vmax=2.5, **look)
            bare(ax)
        axes[0, column].set_title(name.removesuffix(".weight"), fontsize=10)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for ax, note in zip(axes[:, -1], notes, strict=True):
        ax.annotate(note, (1, 0.5), (6, 0), "axes fraction", "offset points", va="center", fontsize=10)
    label = "weight, or difference, in units of its tensor's spread over the zoo"
    fig.colorbar(strip, ax=axes, location="bottom", label=label, extend="both", shrink=0.5, aspect=50, pad=0.04)
    return fig


def accuracy_and_novelty(audits: Sequence[Audit], baselines: Collection[str]) -> Figure:
    """Mean accuracy against mean nearest distance, a dot a method with 95 % intervals; open, with its spread, below `NARROW`.

    Intervals are over the tasks, of a single task over its networks. The line joins the baselines that no other beats in both.
    """
    found = {HELD_OUT: [task.held_out for task in audits[0].tasks.values()]}
    found |= {audit.name: [task.samples for task in audit.tasks.values()] for audit in audits}
    fig, ax = plt.subplots(figsize=(8.5, 5))
    points, names = {}, {}
    for method, tasks in found.items():
        x, y = _over_tasks([task.nearest for task in tasks]), _over_tasks([task.test.accuracy for task in tasks])
        spread = float(np.mean([task.spread for task in tasks]))
        points[method], colour, narrow = (x.value, y.value), colour_of(method), spread < NARROW
        names[method] = name_of(method) + (f", spread {spread:.2f}" if narrow else "")
        # the part of an interval that an accuracy, or a distance, can reach
        errors = [[[i.value - max(i.low, 0)], [min(i.high, most) - i.value]] for i, most in ((y, 1), (x, np.inf))]
        ax.errorbar(*points[method], *errors, fmt="o", ms=8, color=colour, mfc="white" if narrow else colour, elinewidth=1)
    edge = frontier_of(np.array([points[name] for name in baselines]))
    ax.plot(*edge.T, color=ORANGE, lw=1.4, ls="--", zorder=0, label="frontier of the baselines")
    ax.set(xlabel="distance to the nearest training network (1: held-out networks)", ylabel="mean test accuracy")
    ax.margins(x=0.1, y=0.1)
    ax.legend(loc="lower left")
    name_points(ax, {names[method]: point for method, point in points.items()})
    return fig


def _over_tasks(values: Sequence[Tensor]) -> Interval:
    return mean_interval([float(v.mean()) for v in values] if len(values) > 1 else values[0].cpu().numpy())


def frontier_of(points: np.ndarray) -> np.ndarray:
    """Of points [n, 2], those that no other exceeds in both numbers, by their first number: [m, 2]."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    best_from = np.maximum.accumulate(ordered[::-1, 1])[::-1]
    return ordered[ordered[:, 1] > np.append(best_from[1:], -np.inf)]


# where a name may stand: points right and up of its dot, and how it is aligned
_SIDES = [((x, y), side) for y in (9, -9, 22, -22, 35, -35) for x, side in ((9, "left"), (-9, "right"))]


def name_points(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Each name beside its point [x, y], at the first of several places where it covers neither a point nor another name."""
    ax.figure.draw_without_rendering()  # for the scale of the picture
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in ax.transData.transform(list(points.values()))]
    for name, point in points.items():
        text = ax.annotate(name, point, (0, 0), textcoords="offset points", va="center", fontsize=9.5)
        for offset, side in _SIDES:
            text.xyann = offset
            text.set_ha(side)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
