"""Drawings about encoders, pure functions: data in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from flownlib.figures import INK, PALETTE


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
    ax.legend(loc="center right", fontsize=10)
    return fig
