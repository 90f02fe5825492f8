"""Figures of notebook 03: a flow in two dimensions, paths, training, and where variety is lost."""

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
from flownlib.plots.encoders import clouds
from flownlib.plots.style import BLUE, GREY, INK, PALETTE, colour_of, name_of


def _trajectories(ax: Axes, x: Tensor, colour: str, alpha: float = 0.6) -> None:
    """Trajectories [s, n, 2] as lines, from a grey dot to a coloured one, in the plane of two latent axes."""
    ax.add_collection(LineCollection(x.transpose(0, 1).cpu().numpy(), color=colour, alpha=alpha, lw=0.9))
    ax.scatter(*x[0].T.cpu().numpy(), s=9, color=GREY, lw=0)
    ax.scatter(*x[-1].T.cpu().numpy(), s=12, color=colour, lw=0)
    ax.autoscale()
    ax.set(xlabel="first axis (standard deviations)")


def two_dimensions(
    pairs: tuple[Tensor, Tensor, Sequence[str]], free: Tensor, field: tuple[Tensor, Tensor], asked: Tensor, title: str
) -> Figure:
    """A flow in a plane: its pairs, and the trajectories [s, n, 2] that it makes of noise without a context and with one.

    Args:
        pairs: x_0 [n, 2], x_1 [n, 2] and the tasks of these. free, asked: trajectories without, with a context.
        field: points x_t [m, 2] at t = 1/2 and the velocity [m, 2] there, without a context. title: of the last panel.
    """
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.9), sharex=True, sharey=True)
    x_0, x_1, tasks = pairs
    colours = dict(zip(dict.fromkeys(tasks), PALETTE, strict=False))
    segments = torch.stack([x_0, x_1], dim=1).cpu().numpy()
    axes[0].add_collection(LineCollection(segments, color=[colours[task] for task in tasks], alpha=0.5, lw=0.7))
    clouds(axes[0], x_1, tasks)
    _trajectories(axes[1], free, BLUE)
    axes[1].quiver(*field[0].T.cpu().numpy(), *field[1].T.cpu().numpy(), color=INK, angles="xy", width=0.004, zorder=3)
    _trajectories(axes[2], asked, BLUE)
    axes[0].set(ylabel="second axis (standard deviations)", xlabel="first axis (standard deviations)")
    titles = "pairs: lines that cross", "no context: an average (arrows: t = ½)", title
    for ax, text in zip(axes, titles, strict=True):
        ax.set_title(text)
    return fig


def path_shapes(paths: Mapping[str, StraightPath], x_0: Tensor, x_1: Tensor, stops: int = 41) -> Figure:
    """Each path between the same pairs [n, 2], and the norm of x_t along it, averaged over Gaussian pairs in 64 dimensions."""
    fig, axes = plt.subplots(1, len(paths) + 1, figsize=(3.4 * (len(paths) + 1), 3.2))
    far = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, stops)
    for ax, colour, (name, path) in zip(axes, PALETTE, paths.items(), strict=False):
        title = name.replace("_", " ")
        x = torch.stack([path.sample(x_0, x_1, t.expand(len(x_0))).x_t for t in times])
        _trajectories(ax, x, colour)
        ax.set_title(title)
        norms = [path.sample(*far, t.expand(500)).x_t.norm(dim=1).mean() / 8 for t in times]
        axes[-1].plot(times.cpu().numpy(), torch.stack(norms).cpu().numpy(), color=colour, lw=2, label=title)
    axes[0].set_ylabel("second axis")
    axes[-1].set(xlabel="flow time t", ylim=(0, 1.1), title="norm of $x_t$ (noise and data: 1)")
    axes[-1].legend(loc="lower left")
    return fig


def dispersion(losses: Sequence[float], dispersions: Sequence[tuple[int, float]]) -> Figure:
    """The training loss from zero up, and beside it how far samples lie apart, in units of the data's dispersion."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.1))
    loss_curve(axes[0], losses, "squared error of the velocity\n(per latent coordinate)")
    axes[0].set(ylim=(0, None))
    if dispersions:
        axes[1].plot(*zip(*dispersions, strict=True), marker="o", color=BLUE, clip_on=False)
        axes[1].annotate(f"{dispersions[-1][1]:.2f}", dispersions[-1], (0, -16), textcoords="offset points", ha="center")
    axes[1].axhline(1, color=GREY, lw=1.2, ls="--")
    axes[1].set(xlabel="training step", ylim=(0, 1.15), ylabel="dispersion of samples in a task\n(1: the data's)")
    return fig


def variety(table: Mapping[str, tuple[float, float]]) -> Figure:
    """How much networks of a task differ, as latents and after decoding (1: the zoo's): a line a method, named at its left."""
    fig, ax = plt.subplots(figsize=(7.5, 4))
    free = 0.0  # the lowest place for a label at the right
    for name, ends in sorted(table.items(), key=lambda row: row[1][1]):
        ax.plot((0, 1), ends, "o-", color=colour_of(name), lw=2, clip_on=False)
        ax.annotate(f"{name_of(name)} {ends[0]:.2f}", (0, ends[0]), (-10, -4), textcoords="offset points", ha="right")
        ax.text(1.04, max(ends[1], free), f"{ends[1]:.3f}", color=colour_of(name), va="center")
        free = max(ends[1], free) + 0.07
    ax.axhline(1, color=GREY, lw=1.2, ls="--")
    ax.set_xticks((0, 1), ("in latents", "in weights, decoded"))
    ax.set(xlim=(-0.9, 1.25), ylim=(0, None), ylabel="spread within a task (1: the zoo's own)")
    return fig
