"""Figures of notebook 03: lines that cross and trajectories that do not, paths, and what a flow loses in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.flow import StraightPath
from flownlib.plots.charts import loss_curve
from flownlib.plots.style import BLUE, GREY, PALETTE, bare


def _trajectories(ax: Axes, x: Tensor, colours: Sequence[str], alpha: float = 0.5) -> None:
    """Trajectories [s, n, 2] as lines, from a grey dot to a coloured one."""
    ax.add_collection(LineCollection(x.transpose(0, 1).cpu().numpy(), colors=colours, alpha=alpha, lw=0.8))
    ax.scatter(*x[0].T.cpu().numpy(), s=7, color=GREY, lw=0)
    ax.scatter(*x[-1].T.cpu().numpy(), s=10, c=colours, lw=0)
    ax.autoscale()
    bare(ax)


def two_dimensions(x_0: Tensor, x_1: Tensor, tasks: Sequence[int], x: Tensor, contexts: Sequence[int]) -> Figure:
    """Left: random pairs [n, 2] joined by lines. Right: a trained flow's trajectories x [s, m, 2], coloured by context."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
    _trajectories(axes[0], torch.stack([x_0, x_1]), [PALETTE[task] for task in tasks])
    _trajectories(axes[1], x, [PALETTE[context] for context in contexts])
    axes[0].set_title("what the flow is taught: pairs, and lines that cross")
    axes[1].set_title("what it learns: an average that does not")
    return fig


def path_shapes(paths: Mapping[str, StraightPath], x_0: Tensor, x_1: Tensor, stops: int = 41) -> Figure:
    """Each path between the same pairs [n, 2], and the norm of x_t along it, averaged over Gaussian pairs in 64 dimensions."""
    fig, axes = plt.subplots(1, len(paths) + 1, figsize=(3.4 * (len(paths) + 1), 3.2))
    far = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, stops)
    for ax, colour, (name, path) in zip(axes, PALETTE, paths.items(), strict=False):
        title = name.replace("_", " ")
        x = torch.stack([path.sample(x_0, x_1, t.expand(len(x_0))).x_t for t in times])
        _trajectories(ax, x, [colour] * len(x_0), alpha=0.8)
        ax.set_title(title)
        norms = [path.sample(*far, t.expand(500)).x_t.norm(dim=1).mean() / 8 for t in times]
        axes[-1].plot(times.cpu().numpy(), torch.stack(norms).cpu().numpy(), color=colour, lw=2, label=title)
    axes[-1].set(xlabel="flow time t", ylim=(0, 1.1), title="norm of $x_t$ (noise and data: 1)")
    axes[-1].legend(loc="lower left")
    return fig


def dispersion(losses: Sequence[float], dispersions: Sequence[tuple[int, float]]) -> Figure:
    """The training loss, and beside it how far samples lie apart, in units of the data's dispersion."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.9))
    loss_curve(axes[0], losses, "flow-matching loss")
    if dispersions:
        axes[1].plot(*zip(*dispersions, strict=True), marker="o", color=BLUE, clip_on=False)
    axes[1].axhline(1, color=GREY, lw=1.2, ls="--")
    axes[1].set(xlabel="training step", ylim=(0, 1.1), ylabel="dispersion (data: 1)", title="samples within a task")
    return fig
