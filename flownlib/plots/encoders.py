"""Drawings of notebook 02: encoders compared on kinds of zoo, the map of latents, and what rank costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.plots.style import GREY, INK, PALETTE


def encoder_comparison(table: pd.DataFrame, zoos: Mapping[str, str]) -> Figure:
    """Held-out accuracy after decoding with its interval, a panel a zoo, a row an encoder; the band is the originals'.

    The table has the columns zoo, method, value, low and high, with the originals as method `zoo_held_out`.
    """
    methods = [name for name in dict.fromkeys(table["method"]) if name != "zoo_held_out"]
    fig, axes = plt.subplots(1, len(zoos), figsize=(2.9 * len(zoos) + 1.2, 0.42 * len(methods) + 1.2), sharey=True)
    for ax, (zoo, title) in zip(axes, zoos.items(), strict=True):
        rows = table[table["zoo"] == zoo].set_index("method")
        ax.axvspan(rows.loc["zoo_held_out", "low"], rows.loc["zoo_held_out", "high"], color=GREY, alpha=0.4, lw=0)
        for place, name in enumerate(methods):
            row = rows.loc[name]
            ax.plot([row["low"], row["high"]], [place] * 2, color=PALETTE[0], lw=2.2, solid_capstyle="round")
            ax.scatter(row["value"], place, s=46, color=PALETTE[0], edgecolors="white", zorder=3)
        ax.set(title=title, xlim=(0, 1.02), xlabel="test accuracy")
        ax.grid(axis="x", color="#e8ecef")
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    return fig


def latent_maps(points: Tensor, tasks: Sequence[str], accuracy: Tensor) -> Figure:
    """Latents in a plane [n, 2] twice: coloured by task, and by the networks' accuracy [n]."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharex=True, sharey=True)
    for color, name in zip(PALETTE, dict.fromkeys(tasks), strict=False):
        rows = torch.tensor([task == name for task in tasks])
        axes[0].scatter(*points[rows].T.numpy(), s=16, color=color, alpha=0.8, lw=0, label=name)
    axes[0].legend(fontsize=9, loc="best")
    dots = axes[1].scatter(*points.T.numpy(), s=16, c=accuracy.numpy(), cmap="viridis", lw=0)
    fig.colorbar(dots, ax=axes[1], label="test accuracy")
    for ax in axes:
        ax.set_xlabel("first latent axis", color=INK)
    axes[0].set_ylabel("second latent axis")
    return fig


def rank_curve(records: Sequence[Mapping]) -> Figure:
    """Accuracy against rank, with full fine-tuning and the head alone as lines, each with its 95 % interval.

    Args:
        records: those of the study "lora" whose quantity is `test_accuracy_mean`, as in a results file.
    """
    fig, ax = plt.subplots(figsize=(8, 4))
    for method, name, colour in (("full_fine_tuning", "full fine-tuning", PALETTE[1]), ("head_only", "head alone", PALETTE[7])):
        (line,) = [record for record in records if record["method"] == method]
        ax.axhspan(line["low"], line["high"], color=colour, alpha=0.13, lw=0)
        ax.axhline(line["value"], color=colour, lw=2, ls="--", label=f"{name}, {line['setting']['latent_dim']:,} numbers")
    curve = sorted((record for record in records if record["method"] == "lora"), key=lambda record: record["setting"]["rank"])
    value = [record["value"] for record in curve]
    bars = [[r["value"] - r["low"] for r in curve], [r["high"] - r["value"] for r in curve]]
    label = f"LoRA of {curve[0]['setting']['adapted']:,} numbers"
    style = {"color": PALETTE[0], "marker": "o", "lw": 2.2, "ecolor": INK, "elinewidth": 1.2, "capsize": 4}
    ax.errorbar(range(len(curve)), value, bars, label=label, **style)
    ticks = [f"{r['setting']['rank']}\n{r['setting']['latent_dim']:,}" for r in curve]
    ax.set_xticks(range(len(curve)), ticks)
    ax.set(xlabel="rank, and numbers in a latent", ylabel="test accuracy")
    ax.margins(x=0.08)
    ax.grid(axis="y", color="#e8ecef")
    ax.legend(loc="best", fontsize=10)
    return fig
