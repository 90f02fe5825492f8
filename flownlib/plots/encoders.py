"""Figures of notebook 02: networks before and after encoding, encoders compared, the map of latents, what rank costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from flownlib.encoders import Reconstruction
from flownlib.plots.charts import Measure, comparison
from flownlib.plots.style import GREY, INK, PALETTE, colour_of, name_of
from flownlib.statistics import Interval, mean_interval


def encoder_comparison(table: pd.DataFrame, zoos: Mapping[str, str]) -> Figure:
    """Accuracy after decoding with its interval, a panel a zoo, a row an encoder; a dashed line for the held-out originals.

    The table has the columns zoo, method, value, low and high, with the originals as method `zoo_held_out`.
    """
    originals = table[table["method"] == "zoo_held_out"].set_index("zoo")["value"]
    panels = {zoo: Measure(title, float(originals[zoo]), (0, 1)) for zoo, title in zoos.items()}
    rows = [method for method in dict.fromkeys(table["method"]) if method != "zoo_held_out"]
    return comparison(table, panels, rows, panel="zoo", xlabel="test accuracy (dashed: the networks before encoding)")


def clouds(ax: Axes, points: Tensor, labels: Sequence[str], size: float = 16, named: bool = True) -> None:
    """Points [n, 2], a colour a label, and each label's name above its cloud if `named`, else for a legend."""
    outline = [withStroke(linewidth=3, foreground="white")]
    for colour, name in zip(PALETTE, dict.fromkeys(labels), strict=False):
        x, y = points[torch.tensor([label == name for label in labels])].T.cpu().numpy()
        ax.scatter(x, y, s=size, color=colour, alpha=0.8, lw=0, label=name_of(name))
        place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "path_effects": outline}
        if named:
            ax.annotate(name_of(name), (x.mean(), y.max()), color=colour, fontweight="bold", **place)
    ax.margins(0.08)


def latent_maps(points: Tensor, tasks: Sequence[str], accuracy: Tensor) -> Figure:
    """Latents in a plane [n, 2] twice: coloured by task, and by the networks' accuracy [n]."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.1), sharex=True, sharey=True)
    clouds(axes[0], points, tasks)
    dots = axes[1].scatter(*points.T.cpu().numpy(), s=16, c=accuracy.cpu().numpy(), cmap="viridis", lw=0)
    fig.colorbar(dots, ax=axes[1], label="test accuracy of the network")
    axes[0].set(ylabel="second latent axis")
    for ax in axes:
        ax.set(xlabel="first latent axis (standard deviations)")
    return fig


def ladder(rungs: Mapping[str, Mapping[str, Reconstruction]]) -> Figure:
    """Accuracy and R² after the round trip, a row a rung, a dot each for training and for held-out networks."""
    cells = [
        {"rung": name, "part": part, "quantity": quantity, **vars(found)}
        for name, parts in rungs.items()
        for part, r in parts.items()
        for quantity, found in (("accuracy", mean_interval(r.accuracy_after)), ("r2", Interval(r.r2, r.r2, r.r2, 1)))
    ]
    panels = {"accuracy": Measure("test accuracy, decoded", limits=(0, 1)), "r2": Measure("R² (share of weights returned)")}
    parts = {"training": "training networks", "held out": "held-out networks"}
    return comparison(pd.DataFrame(cells), panels, {name: name for name in rungs}, row="rung", series=parts, by="part")


def reconstructions(results: Mapping[str, Reconstruction], tasks: Mapping[str, Sequence[str]]) -> Figure:
    """Accuracies before and after the round trip, a panel a group of networks with their tasks [n].

    Each title has the correlation within tasks: whether a better network comes back as a better one.
    """
    fig, axes = plt.subplots(1, len(results), figsize=(4.6 * len(results), 4.1), squeeze=False)
    for ax, (part, result) in zip(axes[0], results.items(), strict=True):
        pair = torch.stack([result.accuracy_before, result.accuracy_after], dim=1)
        ax.axline([float(result.accuracy_before.mean())] * 2, slope=1, color=GREY, lw=1.2)
        clouds(ax, pair, tasks[part], named=False)
        own = [pair[torch.tensor([other == task for other in tasks[part]])].mean(0) for task in tasks[part]]
        within = pair - torch.stack(own)
        ax.set(title=f"{part} (within a task, r = {torch.corrcoef(within.T)[0, 1]:.2f})", xlabel="test accuracy, original")
    axes[0, 0].set_ylabel("test accuracy, decoded")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=1.6)
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
