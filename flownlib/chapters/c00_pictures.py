"""Pictures of the plane of two weights (notebook 00). Every public function is pure: numbers in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import IntSlider, SelectionSlider
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.chapters.c00_plane import CHORDS, EXTENT, NOISE, Chord, PlaneZoo, copies, loss_surface, predict
from flownlib.plots.charts import loss_curve
from flownlib.plots.panel import Panel
from flownlib.plots.style import BLUE, GREEN, GREY, INK, PALE, PALETTE, PINK, VIOLET, free_figure

COLOURS = dict(zip(CHORDS, (GREEN, PINK, VIOLET), strict=True))
LAND = LinearSegmentedColormap.from_list("land", ["#FFFFFF", "#F1F4F8", "#DCE3EC", "#BFCBDA", "#A3B3C8"])
WIDTH = 9.5  # of a figure, in inches


@dataclass(frozen=True)
class Land:
    """A chord's loss surface, computed once: the axis [r] of both weights and the loss [r, r]."""

    chord: Chord
    axis: np.ndarray
    loss: np.ndarray

    @property
    def colour(self) -> str:
        """The chord's colour in every picture; ink for a chord that is not one of the three."""
        return COLOURS.get(self.chord, INK)


def land(chord: Chord, resolution: int = 181) -> Land:
    """The loss surface of a chord, ready to be drawn."""
    axis, loss = loss_surface(chord, resolution)
    return Land(chord, axis.numpy(), loss.numpy())


def _plane(axes: Axes, title: str = "", labels: bool = True) -> None:
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal", xticks=(-4, 0, 4), yticks=(-4, 0, 4))
    axes.set_title(title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if labels:
        axes.set(xlabel="weight $w_1$", ylabel="weight $w_2$")
    else:
        axes.set(xticklabels=(), yticklabels=())


def _terrain(axes: Axes, surface: Land, lines: bool = False) -> plt.cm.ScalarMappable:
    # the square root spreads the levels of the valleys, which are what we look at
    ground = (surface.axis, surface.axis, np.sqrt(surface.loss), np.arange(0, 2, 0.2))
    if lines:
        axes.contour(*ground, colors="white", linewidths=0.8, zorder=1.5)
    return axes.contourf(*ground, cmap=LAND, extend="max", zorder=1)


def _minima(axes: Axes, chord: Chord) -> None:
    eight = copies(chord.weights)[:, 0].numpy()
    axes.scatter(*eight.T, s=70, marker="o", facecolor="none", edgecolor=INK, linewidth=1.3, zorder=4)


def _dots(axes: Axes, points: Tensor, colour: str, size: float = 7) -> None:
    axes.scatter(*points.numpy().T, s=size, color=colour, alpha=0.75, linewidth=0, zorder=3)


def chords_and_data(observations: Sequence[tuple[Tensor, Tensor]]) -> Figure:
    """Each chord's true curve with one network's noisy sample x, y [m]."""
    figure, row = plt.subplots(1, len(CHORDS), figsize=(WIDTH, 3.0), sharey=True)
    grid = np.linspace(0, 3, 200)
    for axes, (chord, colour), (x, y) in zip(row, COLOURS.items(), observations, strict=True):
        curve = predict(chord.weights, Tensor(grid))[0]
        axes.fill_between(grid, curve - NOISE, curve + NOISE, color=colour, alpha=0.1, linewidth=0)
        axes.plot(grid, curve, color=colour, linewidth=2.5)
        axes.scatter(x, y, s=28, color=INK, linewidth=0, zorder=3)
        axes.set(title=f"{chord.name}:  notes {chord.high} and {chord.low}", xlabel="input $x$", xlim=(-0.05, 3))
    row[0].set_ylabel("output  $\\cos w_1x+\\cos w_2x$")
    return figure


def planes(lands: Sequence[Land], points: Sequence[Tensor] | None = None) -> Figure:
    """One plane a chord: its loss surface, and either networks [n, 2] as dots or the eight perfect ones as rings."""
    figure, row = plt.subplots(1, len(lands), figsize=(WIDTH, 3.5))
    for i, (axes, surface) in enumerate(zip(row, lands, strict=True)):
        image = _terrain(axes, surface, lines=True)
        _plane(axes, surface.chord.name)
        if points is None:
            _minima(axes, surface.chord)
        else:
            _dots(axes, points[i], surface.colour, 10)
    bar = figure.colorbar(image, ax=row, shrink=0.75, aspect=28, label="root of the test loss", ticks=(0, 0.6, 1.2, 1.8))
    bar.outline.set_visible(False)
    return figure


def bridge(surface: Land, parents: Tensor, losses: Tensor) -> Figure:
    """Two parents [2, 2] in the plane with their mean, and the loss [s] along the line that joins them."""
    figure, (plane, profile) = plt.subplots(1, 2, figsize=(WIDTH, 3.8), width_ratios=(1, 1.35))
    colour, middle = surface.colour, parents.mean(dim=0)
    _terrain(plane, surface, lines=True)
    _plane(plane, "two networks and their mean")
    plane.plot(*parents.numpy().T, color=INK, linewidth=1.5, zorder=3)
    plane.scatter(*parents.numpy().T, s=80, color=colour, zorder=4)
    plane.scatter(*middle.numpy(), s=110, marker="X", color=INK, zorder=4)
    along = np.linspace(0, 1, len(losses))
    profile.fill_between(along, losses, color=colour, alpha=0.12, linewidth=0)
    profile.plot(along, losses, color=colour, linewidth=2.5)
    profile.scatter([0, 1], losses[[0, -1]], s=80, color=colour, zorder=4, clip_on=False)
    profile.scatter(0.5, losses[len(losses) // 2], s=110, marker="X", color=INK, zorder=4)
    profile.set(title="the loss on the way", ylabel="test loss", xticks=(0, 0.5, 1), ylim=(0, None))
    profile.set_xticklabels(("one network", "their mean", "another"))
    return figure


def straight_paths(x_0: Tensor, x_1: Tensor, t: Tensor, x_t: Tensor, losses: Sequence[float]) -> Figure:
    """Straight paths from noise x_0 to networks x_1, both [n, 2], a point x_t on each, and the training loss."""
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(WIDTH, 3.8), width_ratios=(1, 1.35))
    plane.add_collection(LineCollection(np.stack([x_0, x_1], axis=1), colors=GREY, linewidths=0.7, alpha=0.5))
    plane.scatter(*x_0.T, s=14, color=GREY, linewidth=0, label="noise $x_0$")
    plane.scatter(*x_1.T, s=22, color=BLUE, linewidth=0, label="network $x_1$")
    plane.scatter(*x_t.T, s=16 * (0.4 + t), color=INK, linewidth=0, label="$x_t$ on the way", zorder=3)
    _plane(plane, "what the flow is taught")
    plane.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=10, handletextpad=0, columnspacing=0.8)
    loss_curve(curve, losses, "conditional flow matching loss")
    curve.set_title("how it learns")
    return figure


def _tails(axes: Axes, path: np.ndarray, colour: str, alpha: float = 0.35, width: float = 0.7) -> None:
    """Trajectories path [s, n, 2] as fine lines that gain colour along the way, in five pieces: quick to draw."""
    cuts = np.linspace(0, len(path) - 1, 6).astype(int)
    for piece, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        lines = path[start : stop + 1].swapaxes(0, 1)
        axes.add_collection(LineCollection(lines, colors=colour, alpha=alpha * (piece + 1) / 5, linewidths=width, zorder=2))


def streams(lands: Sequence[Land], paths: Sequence[Tensor]) -> Figure:
    """Whole trajectories [s, n, 2], one plane a chord: noise in the middle, networks at the ends."""
    figure, row = plt.subplots(1, len(lands), figsize=(WIDTH, 3.5))
    for axes, surface, path in zip(row, lands, paths, strict=True):
        _terrain(axes, surface)
        _tails(axes, path.numpy(), surface.colour, alpha=0.6)
        _dots(axes, path[0], GREY, 5)
        _dots(axes, path[-1], surface.colour, 12)
        _plane(axes, surface.chord.name)
    return figure


def moments(lands: Sequence[Land], paths: Sequence[Tensor], times: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> Figure:
    """Small multiples: a row a chord, a column a time t, with the trajectories [s, n, 2] so far as fine lines."""
    figure, grid = plt.subplots(len(lands), len(times), figsize=(WIDTH, 6.0))
    for row, surface, path in zip(grid, lands, paths, strict=True):
        for axes, t in zip(row, times, strict=True):
            now = round(t * (len(path) - 1))
            _terrain(axes, surface)
            _tails(axes, path[: now + 1].numpy(), surface.colour)
            _dots(axes, path[now], surface.colour, 8)
            _plane(axes, f"$t = {t:g}$" if surface is lands[0] else "", labels=False)
        row[0].set_ylabel(surface.chord.name)
    return figure


def moment(surface: Land, path: Tensor, now: int) -> Figure:
    """One instant `now` of trajectories [s, n, 2]: the plane, and the curves of forty of its networks."""
    figure = free_figure(10, 4.2)  # solving for the layout would take longer than drawing, and the picture would jump
    margins = {"left": 0.07, "right": 0.98, "bottom": 0.14, "top": 0.9, "wspace": 0.22}
    plane, curves = figure.subplots(1, 2, width_ratios=(1, 1.25), gridspec_kw=margins)
    colour, grid = surface.colour, np.linspace(0, 3, 100)
    _terrain(plane, surface)
    _tails(plane, path[: now + 1].numpy(), colour)
    _dots(plane, path[now], colour, 12)
    _plane(plane, f"{surface.chord.name},  $t = {now / (len(path) - 1):.2f}$")
    curves.plot(grid, predict(path[now, :40], Tensor(grid)).T, color=colour, linewidth=0.8, alpha=0.4)
    curves.plot(grid, predict(surface.chord.weights, Tensor(grid))[0], color=INK, linewidth=2.5, label="the true chord")
    curves.set(title="what the networks compute", xlabel="input $x$", ylabel="output", xlim=(0, 3), ylim=(-2.2, 2.2))
    curves.legend(loc="lower left", fontsize=10)
    return figure


def moment_panel(lands: Sequence[Land], films: Mapping[tuple[int, int], Tensor]) -> Panel:
    """Choose the chord, the seed and the time of a `moment`.

    Args:
        films: (seed, chord's number) → trajectories [s, n, 2], equally long for all.
    """
    seeds, last = list(dict.fromkeys(seed for seed, _ in films)), len(next(iter(films.values()))) - 1
    names = [(land.chord.name, number) for number, land in enumerate(lands)]
    controls = {
        "chord": SelectionSlider(options=names, value=len(lands) - 1, description="chord", continuous_update=False),
        "seed": SelectionSlider(options=seeds, description="seed", continuous_update=False),
        "now": IntSlider(4 * last // 5, 0, last, description=f"time / {last}", continuous_update=False),
    }
    return Panel(lambda chord, seed, now: moment(lands[chord], films[seed, chord], now), controls, width=800, height=336)


def folding(zoo: PlaneZoo) -> Figure:
    """The zoo of [n, 2] on a sheet of paper that is folded three times; a dot keeps its first sheet's colour."""
    w = zoo.weights.numpy()
    octant = ((np.arctan2(w[:, 1], w[:, 0]) + 2 * np.pi) // (np.pi / 4)).astype(int) % 8
    colours = np.array(PALETTE)[octant]
    half, quarter = np.stack([np.abs(w[:, 0]), w[:, 1]], 1), np.abs(w)
    stages = (w, half, quarter, np.sort(quarter, axis=1)[:, ::-1])
    titles = ("the whole sheet", "fold at $w_1=0$", "fold at $w_2=0$", "fold at $w_1=w_2$")
    r = EXTENT
    papers = ([(-r, -r), (r, -r), (r, r), (-r, r)], [(0, -r), (r, -r), (r, r), (0, r)], [(0, 0), (r, 0), (r, r), (0, r)])
    figure, row = plt.subplots(1, 4, figsize=(WIDTH, 2.9))
    for axes, points, title, paper in zip(row, stages, titles, (*papers, [(0, 0), (r, 0), (r, r)]), strict=True):
        axes.fill(*np.array(paper).T, color=PALE, linewidth=0)
        axes.scatter(*points.T, s=5, c=colours, alpha=0.8, linewidth=0)
        _plane(axes, title, labels=axes is row[0])
    return figure
