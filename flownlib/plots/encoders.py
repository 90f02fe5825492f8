"""Figures of notebook 02: encoders compared on kinds of zoo, the map of latents, and what rank costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.plots.charts import Measure, comparison
from flownlib.plots.style import INK, PALETTE, colour_of, name_of


def encoder_comparison(table: pd.DataFrame, zoos: Mapping[str, str]) -> Figure:
    """Accuracy after decoding with its interval, a panel a zoo, a row an encoder; the band is the held-out originals'.

    The table has the columns zoo, method, value, low and high, with the originals as method `zoo_held_out`.
    """
    originals = table[table["method"] == "zoo_held_out"].set_index("zoo")[["low", "high"]]
    panels = {zoo: Measure(title, tuple(originals.loc[zoo]), (0, 1)) for zoo, title in zoos.items()}
    rows = [method for method in dict.fromkeys(table["method"]) if method != "zoo_held_out"]
    return comparison(table, panels, rows, panel="zoo", xlabel="test accuracy (grey band: the original networks)")


def latent_maps(points: Tensor, tasks: Sequence[str], accuracy: Tensor) -> Figure:
    """Latents in a plane [n, 2] twice: coloured by task, and by the networks' accuracy [n]."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharex=True, sharey=True)
    x, y = points.T.cpu().numpy()
    names = [name_of(task) for task in tasks]
    palette = PALETTE[: len(set(names))]
    sns.scatterplot(x=x, y=y, hue=names, palette=palette, s=22, alpha=0.8, linewidth=0, ax=axes[0])
    dots = axes[1].scatter(x, y, s=16, c=accuracy.cpu().numpy(), cmap="viridis", lw=0)
    fig.colorbar(dots, ax=axes[1], label="test accuracy")
    for ax in axes:
        ax.set(xlabel="first latent axis", ylabel="second latent axis")
    return fig


def rank_curve(records: Sequence[Mapping]) -> Figure:
    """Accuracy against rank, with full fine-tuning and the head alone as lines, each with its 95 % interval.

    Args:
        records: those of the study "lora" whose quantity is `test_accuracy_mean`, as in a results file.
    """
    fig, ax = plt.subplots(figsize=(8, 4))
    for method in ("full_fine_tuning", "head_only"):
        (line,) = [record for record in records if record["method"] == method]
        ax.axhspan(line["low"], line["high"], color=colour_of(method), alpha=0.15, lw=0)
        label = f"{name_of(method)}, {line['setting']['latent_dim']:,} numbers"
        ax.axhline(line["value"], color=colour_of(method), lw=2, ls="--", label=label)
    curve = sorted((record for record in records if record["method"] == "lora"), key=lambda record: record["setting"]["rank"])
    value = [record["value"] for record in curve]
    bars = [[r["value"] - r["low"] for r in curve], [r["high"] - r["value"] for r in curve]]
    label = f"LoRA of {curve[0]['setting']['adapted']:,} numbers"
    style = {"color": colour_of("lora"), "marker": "o", "lw": 2.2, "ecolor": INK, "elinewidth": 1.2, "capsize": 4}
    ax.errorbar(range(len(curve)), value, bars, label=label, **style)
    ticks = [f"{r['setting']['rank']}\n{r['setting']['latent_dim']:,}" for r in curve]
    ax.set_xticks(range(len(curve)), ticks)
    ax.set(xlabel="rank, and numbers in a latent", ylabel="test accuracy")
    ax.margins(x=0.08)
    ax.grid(axis="y")
    ax.legend()
    return fig
