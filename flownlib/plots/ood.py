"""Figures of notebook 04, pure functions: data in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.extensions.episodes import Episodes
from flownlib.plots.style import GREY, INK, PALETTE, glyphs
from flownlib.statistics import Interval, mean_interval

# name: (label, colour, line style)
METHODS: dict[str, tuple[str, str, str]] = {
    "class_tokens": ("class tokens: imitation, then queries", PALETTE[1], "-"),
    "class_tokens_imitating": ("class tokens: imitation only", PALETTE[4], "-"),
    "prototypical_centroid": ("prototypical body + centroid", PALETTE[0], "-"),
    "prototypical_logistic": ("prototypical body + logistic", PALETTE[5], "--"),
    "softmax_logistic": ("softmax body + logistic", PALETTE[2], "--"),
    "retrieval_matched": ("retrieval, head matched", PALETTE[3], ":"),
    "zoo_average": ("zoo average", PALETTE[7], ":"),
    "kaiming": ("Kaiming", GREY, ":"),
    "latent_flow": ("latent flow of notebook 03", PALETTE[6], ":"),
    "prototypical_centroid_3x": ("prototypical body, 3 × the steps", PALETTE[0], ":"),
    "class_tokens_queries_only": ("class tokens: queries only", PALETTE[1], ":"),
}


def label(method: str) -> str:
    """The method's name in words."""
    return METHODS[method][0]


def supports(episodes: Episodes, places: Sequence[int], shown: int = 2) -> Figure:
    """The support images of some episodes: a row each, its classes from left to right, `shown` images of each class."""
    fig, axes = plt.subplots(len(places), 1, figsize=(9.5, 0.68 * len(places)))
    for ax, place in zip(np.atleast_1d(axes), places, strict=True):
        images = episodes.support_x[place].unflatten(0, (episodes.way, -1))[:, :shown, 0].flatten(0, 1)
        glyphs(ax, images[None])
        ax.set_ylabel(episodes.names[place].replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    return fig


def glyph_wall(pool: Tensor, columns: int = 32, rows: int = 6) -> Figure:
    """One image of each of some classes of a pool [classes, k, 1, 28, 28], evenly spread over the pool."""
    chosen = torch.linspace(0, len(pool) - 1, min(columns * rows, len(pool) // columns * columns or len(pool))).long()
    images = pool[chosen, 0, 0].unflatten(0, (-1, min(columns, len(chosen))))
    fig, ax = plt.subplots(figsize=(9.5, 0.3 * len(images) + 0.1))
    glyphs(ax, images)
    return fig


def losses(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Training losses side by side, each with its running mean over a twentieth of its steps."""
    fig, axes = plt.subplots(1, len(curves), figsize=(9.5, 2.8), squeeze=False)
    for ax, (name, values) in zip(axes[0], curves.items(), strict=True):
        window = max(1, len(values) // 20)
        ax.plot(values, color=GREY, lw=0.6, alpha=0.7)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        ax.plot(np.arange(len(smooth)) + window / 2, smooth, color=PALETTE[0])
        ax.set(title=name, xlabel="step", ylim=(0, 1.15 * np.percentile(values, 97)))
    axes[0, 0].set_ylabel("loss")
    return fig


def head_tokens(raw: Tensor, tokens: Tensor, base: Tensor) -> Figure:
    """One trained head three ways [n, d + 1]: as stored, in the gauge, and what the centroid prior leaves to the flow."""
    titles = ("rows and bias as stored", "as tokens, in the gauge", "tokens minus centroid head")
    fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.5), sharey=True)
    for ax, title, image in zip(axes, titles, (raw, tokens, tokens - base), strict=True):
        limit = float(image.abs().quantile(0.99))
        shown = ax.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        ax.set(title=title, xlabel="feature (last: bias)")
        fig.colorbar(shown, ax=ax, fraction=0.05)
    axes[0].set_ylabel("class")
    return fig


def adaptation_curves(curves: Mapping[str, Tensor], epochs: Sequence[int], clusters: Mapping[str, Sequence[int]]) -> Figure:
    """Query accuracy against fine-tuning epochs, a panel for each group of episodes.

    Args:
        curves: method → accuracy [epochs, m]. clusters: panel title → its episodes. Bands are 95 % intervals over episodes.
    """
    fig, axes = plt.subplots(1, len(clusters), figsize=(9.5, 4.6), sharey=True, squeeze=False)
    for ax, (title, places) in zip(axes[0], clusters.items(), strict=True):
        for method, accuracy in curves.items():
            name, colour, style = METHODS[method]
            means = [mean_interval(row[list(places)].numpy()) for row in accuracy]
            ax.plot(range(len(epochs)), [m.value for m in means], style, color=colour, marker="o", ms=3.5, label=name)
            low, high = zip(*((m.low, m.high) for m in means), strict=True)
            ax.fill_between(range(len(epochs)), low, high, color=colour, alpha=0.13, lw=0)
        ax.set(title=title, xlabel="fine-tuning epochs on 50 images", ylim=(0, 1))
        ax.set_xticks(range(len(epochs)), epochs)
    axes[0, 0].set_ylabel("test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _interval(ax: Axes, place: float, interval: Interval, colour: str, bold: bool = False) -> None:
    if np.isfinite(interval.low):
        ax.plot([interval.low, interval.high], [place, place], color=colour, lw=3 if bold else 2, solid_capstyle="round")
    ax.plot(interval.value, place, "D" if bold else "o", color=colour, ms=7 if bold else 5)


def paired_gains(gains: Mapping[str, Sequence[tuple[str, Interval]]], xlabel: str) -> Figure:
    """Paired differences with their 95 % intervals: a panel a method, a row a task or a summary.

    Args:
        gains: method → (row name, interval); a row whose name starts with "all" is drawn bold.
    """
    height = max(len(rows) for rows in gains.values())
    fig, axes = plt.subplots(1, len(gains), figsize=(9.5, 0.36 * height + 1), sharex=True, sharey=True, squeeze=False)
    for ax, (method, rows) in zip(axes[0], gains.items(), strict=True):
        for place, (name, interval) in enumerate(rows):
            _interval(ax, place, interval, METHODS[method][1], bold=name.startswith("all"))
        ax.axvline(0, color=INK, lw=1)
        ax.set(title=label(method), xlabel=xlabel)
        ax.title.set_fontsize(10)
        ax.set_yticks(range(len(rows)), [name.replace("_", " ") for name, _ in rows])
    axes[0, 0].invert_yaxis()
    return fig


def rewards(accuracies: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Test accuracy before and after reward fine-tuning, an episode a line; "before", then any number of rewards."""
    after = [name for name in accuracies if name != "before"]
    fig, axes = plt.subplots(1, len(after), figsize=(9.5, 3.4), sharey=True, squeeze=False)
    tasks = list(dict.fromkeys(names))
    for ax, reward in zip(axes[0], after, strict=True):
        for before, value, name in zip(accuracies["before"].tolist(), accuracies[reward].tolist(), names, strict=True):
            colour = PALETTE[tasks.index(name) % len(PALETTE)]
            ax.plot([0, 1], [before, value], "o-", color=colour, label=name.replace("_", " "))
        ax.set(title=f"reward on {reward.replace('_', '-')} support images", xlim=(-0.2, 1.2))
        ax.set_xticks([0, 1], ["before", "after"])
    axes[0, 0].set_ylabel("test accuracy")
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9)
    return fig


def study_bars(records: Sequence[Mapping], title: str) -> Figure:
    """Accuracy of each method over training seeds, best first, with its interval; records as in a results file."""
    ordered = sorted(records, key=lambda record: -record["value"])
    fig, ax = plt.subplots(figsize=(9.5, 0.34 * len(ordered) + 1))
    for place, record in enumerate(ordered):
        colour = METHODS[record["method"]][1]
        _interval(ax, place, Interval(record["value"], record["low"], record["high"], record["n"]), colour)
    ax.set_yticks(range(len(ordered)), [label(record["method"]) for record in ordered])
    ax.set(title=title, xlabel="test accuracy, mean and 95 % interval over training seeds")
    ax.invert_yaxis()
    ax.grid(axis="x", color=GREY, alpha=0.3)
    return fig
