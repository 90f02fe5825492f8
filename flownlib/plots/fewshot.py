"""Figures of notebook 05 and its episode panel, pure functions: data in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import Dropdown, IntSlider
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flownlib.extensions.episodes import Episodes
from flownlib.extensions.fewshot import Method, accuracy, fewer
from flownlib.plots.ood import losses as losses_side_by_side
from flownlib.plots.panel import Panel
from flownlib.plots.style import GREY, INK, PALETTE, free_figure, glyphs
from flownlib.statistics import Interval, mean_interval

# name: (label, colour)
METHODS = {
    "many_shot_oracle": ("ceiling: 40 images a class", INK),
    "plda": ("PLDA", PALETTE[2]),
    "caml": ("CAML", PALETTE[3]),
    "logistic_regression": ("logistic regression", PALETTE[5]),
    "centroid": ("nearest centroid", PALETTE[0]),
    "cross_entropy_only": ("generated: query loss only", PALETTE[4]),
    "flown_query": ("generated: imitation, then query loss", PALETTE[1]),
    "flown_ensemble_10": ("imitation, ten samples averaged", PALETTE[6]),
    "flown_mean": ("imitation, from the prior's mean", PALETTE[6]),
    "flown_sample": ("imitation, one sample", PALETTE[6]),
}
DOMAINS = {"in": "new characters, known scripts", "ood": "held-out alphabets", "far": "real handwriting"}


def episodes(shown: Mapping[str, Episodes]) -> Figure:
    """The first of some episodes of images: support on the left, queries on the right, a class a row."""
    fig, axes = plt.subplots(len(shown), 2, figsize=(5.6, 2.1 * len(shown)), width_ratios=[5, 6])
    for (left, right), (name, found) in zip(np.atleast_2d(axes), shown.items(), strict=True):
        for ax, images in ((left, found.support_x), (right, found.query_x)):
            glyphs(ax, images[0, :, 0].unflatten(0, (found.way, -1)))
        left.set_ylabel(DOMAINS[name], fontsize=10)
    axes = np.atleast_2d(axes)
    axes[0, 0].set_title("support: labelled")
    axes[0, 1].set_title("queries: to be labelled")
    return fig


def label_vectors(labels: Tensor) -> Figure:
    """Label vectors [n, n], and the inner products between them."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, title, image in zip(
        axes, ("label vectors, one a row", "their inner products"), (labels, labels @ labels.T), strict=True
    ):
        shown = ax.imshow(image.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(image.numpy()):
            ax.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if abs(value) > 0.6 else INK
            )
        ax.set(title=title, xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes, fraction=0.03)
    return fig


def losses(found: Mapping[str, Sequence[float]]) -> Figure:
    """Training losses by name."""
    titles = {
        "imitation": "imitation (squared error)",
        "queried": "then queries",
        "queries_only": "queries only",
        "caml": "CAML",
    }
    return losses_side_by_side({titles[name]: values for name, values in found.items()})


def ensemble_curve(sizes: Sequence[int], curves: Mapping[str, Tensor], lines: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy against the number of averaged samples.

    Args:
        curves: panel title → accuracies [sizes, m]. lines: panel title → method → accuracy to compare with.
    """
    fig, axes = plt.subplots(1, len(curves), figsize=(9.5, 3.4), squeeze=False)
    for ax, (title, values) in zip(axes[0], curves.items(), strict=True):
        found = [mean_interval(row.numpy()) for row in values]
        colour = METHODS["flown_sample"][1]
        ax.plot(sizes, [one.value for one in found], "o-", color=colour, label="samples of the imitating flow, averaged")
        ax.fill_between(sizes, [one.low for one in found], [one.high for one in found], color=colour, alpha=0.15, lw=0)
        for method, value in lines[title].items():
            ax.axhline(value, color=METHODS[method][1], ls="--", label=METHODS[method][0])
        ax.set(title=title, xscale="log", xlabel="heads averaged")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
    axes[0, 0].set_ylabel("test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _dots(ax: Axes, intervals: Mapping[str, Interval]) -> None:
    for place, method in enumerate(METHODS):
        if method in intervals:
            one, colour = intervals[method], METHODS[method][1]
            ax.plot([one.low, one.high], [place, place], color=colour, lw=2, solid_capstyle="round")
            ax.plot(one.value, place, "o", color=colour, ms=6)
    known = [place for place, method in enumerate(METHODS) if method in intervals]
    ax.set_yticks(known, [METHODS[list(METHODS)[place]][0] for place in known])
    ax.grid(axis="x", color=GREY, alpha=0.3)


def comparison(
    intervals: Mapping[tuple[str, str, int], Interval], shots: Sequence[int], xlabel: str = "test accuracy"
) -> Figure:
    """An interval for each (method, domain, shot): a row of panels a shot, a column a domain."""
    fig, axes = plt.subplots(len(shots), len(DOMAINS), figsize=(10, 3.3 * len(shots)), sharey=True, squeeze=False)
    for row, shot in zip(axes, shots, strict=True):
        for ax, (domain, title) in zip(row, DOMAINS.items(), strict=True):
            _dots(ax, {m: one for (m, d, k), one in intervals.items() if (d, k) == (domain, shot)})
            ax.set_title(f"{title}\n{shot} image{'s' if shot > 1 else ''} a class", fontsize=10)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            if any(one.low < 0 for one in intervals.values()):  # differences, not accuracies
                ax.axvline(0, color=INK, lw=1)
    fig.supxlabel(xlabel, fontsize=11)
    axes[0, 0].invert_yaxis()
    return fig


def predictions(seen: Episodes, known: Episodes, methods: Mapping[str, Method], chosen: str) -> Figure:
    """One episode: its support, its queries framed by whether the chosen method labels them right, every method's accuracy.

    Args:
        seen, known: the same single episode as images and as features.
    """
    fig = free_figure(11, 4.4)
    logits = {name: method(known) for name, method in methods.items()}
    support, queries = (x[0, :, 0].unflatten(0, (seen.way, -1)) for x in (seen.support_x, seen.query_x))
    left, middle = fig.add_axes((0.0, 0.04, 0.24, 0.8)), fig.add_axes((0.25, 0.04, 0.33, 0.8))
    glyphs(left, support)
    glyphs(middle, queries)
    left.set_title("support", fontsize=10)
    middle.set_title(f"queries, labelled by\n{METHODS[chosen][0]}", fontsize=10)
    right = (logits[chosen].argmax(-1) == known.query_y)[0].unflatten(0, (seen.way, -1))
    size = queries.shape[-1]
    for (row, column), good in np.ndenumerate(right.numpy()):
        colour = PALETTE[2] if good else PALETTE[1]
        place = (column * size + 0.5, row * size + 0.5)
        middle.add_patch(plt.Rectangle(place, size - 2, size - 2, fill=False, ec=colour, lw=2.5))
    ax = fig.add_axes((0.83, 0.12, 0.16, 0.72))
    for place, (name, values) in enumerate(logits.items()):
        ax.barh(place, accuracy(values, known).item(), color=METHODS[name][1], alpha=1 if name == chosen else 0.5)
    ax.set_yticks(range(len(logits)), [METHODS[name][0] for name in logits], fontsize=9)
    ax.set(xlim=(0, 1), title="accuracy on this episode")
    ax.title.set_fontsize(10)
    ax.invert_yaxis()
    return fig


def episode_panel(pairs: Mapping[str, tuple[Episodes, Episodes]], methods: Mapping[str, Method], shots: Sequence[int]) -> Panel:
    """Draw your own episode: choose the domain, the number of labelled images, the episode, and whose labels to look at.

    Args:
        pairs: domain → the same episodes as images and as features.
    """
    count = min(len(seen) for seen, _ in pairs.values())

    def draw(domain: str, shot: int, episode: int, method: str) -> Figure:
        seen, known = (fewer(found.at([episode]), shot) for found in pairs[domain])
        return predictions(seen, known, methods, method)

    controls = {
        "domain": Dropdown(options=[(DOMAINS[name], name) for name in pairs], description="domain"),
        "shot": Dropdown(options=list(shots), description="images"),
        "episode": IntSlider(0, 0, count - 1, description="episode", continuous_update=False),
        "method": Dropdown(options=[(METHODS[name][0], name) for name in methods], description="labels by"),
    }
    return Panel(draw, controls, 880, 352)
