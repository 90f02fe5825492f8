"""Pictures of the plane of two weights (notebook 00). Every public function is pure: numbers in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ipywidgets import IntSlider, SelectionSlider
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.chapters import c00_plane
from flownlib.chapters.c00_plane import CHORDS, EXTENT, Chord, PlaneZoo, copies, loss_surface, predict
from flownlib.plots.panel import Panel
from flownlib.plots.style import GREEN, GREY, INK, PALE, PALETTE, PINK, VIOLET, free_figure

COLOURS = dict(zip(CHORDS, (GREEN, PINK, VIOLET), strict=True))
LAND = LinearSegmentedColormap.from_list("land", ["#FFFFFF", "#F1F4F8", "#DCE3EC", "#BFCBDA", "#A3B3C8"])
WIDTH = 7.4  # of a figure, in inches


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


def _plane(axes: Axes, title: str = "", left: bool = True, bottom: bool = True) -> None:
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal", xticks=(-4, 0, 4), yticks=(-4, 0, 4))
    axes.set_title(title)
    axes.tick_params(length=0, labelleft=left, labelbottom=bottom)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="weight $w_1$" if bottom else "", ylabel="weight $w_2$" if left else "")


def _terrain(axes: Axes, surface: Land) -> plt.cm.ScalarMappable:
    # the square root spreads the levels of the valleys, which are what we look at
    levels = np.arange(0, 2, 0.3)
    return axes.contourf(surface.axis, surface.axis, np.sqrt(surface.loss), levels, cmap=LAND, extend="max", zorder=1)


def _minima(axes: Axes, chord: Chord, size: float = 70) -> None:
    eight = copies(chord.weights)[:, 0].numpy()
    axes.scatter(*eight.T, s=size, marker="o", facecolor="none", edgecolor=INK, linewidth=1.1, zorder=4)


def _dots(axes: Axes, points: Tensor, colour: str, size: float = 7, alpha: float = 0.75) -> None:
    axes.scatter(*points.numpy().T, s=size, color=colour, alpha=alpha, linewidth=0, zorder=3)


def _curves(axes: Axes, chord: Chord, colour: str, networks: Tensor) -> None:
    """What networks [n, 2] compute, as fine lines, and the true chord."""
    grid, pale = np.linspace(0, 3, 60), 0.5 + 0.5 * np.array(to_rgb(colour))  # no transparency: a picture of half the size
    axes.plot(grid, predict(networks, Tensor(grid)).T, color=pale, linewidth=0.8)
    axes.plot(grid, predict(chord.weights, Tensor(grid))[0], color=INK, linewidth=2)
    axes.set(xlim=(0, 3), ylim=(-2.3, 2.3), xticks=(0, 1, 2, 3), yticks=(-2, 0, 2), xlabel="moment $s$")


def chords_and_data(recordings: Sequence[tuple[Tensor, Tensor]]) -> Figure:
    """Each chord's true curve, one standard deviation of noise around it, and one network's noisy recording s, h [m]."""
    figure, row = plt.subplots(1, len(CHORDS), figsize=(WIDTH, 2.7), sharey=True)
    grid, noise = np.linspace(0, 3, 200), c00_plane.NOISE
    for axes, (chord, colour), (s, h) in zip(row, COLOURS.items(), recordings, strict=True):
        curve = predict(chord.weights, Tensor(grid))[0]
        axes.fill_between(grid, curve - noise, curve + noise, color=colour, alpha=0.1, linewidth=0)
        axes.plot(grid, curve, color=colour, linewidth=2.5)
        axes.scatter(s, h, s=28, color=INK, linewidth=0, zorder=3)
        axes.set(title=f"{chord.name}: notes {chord.high} and {chord.low}", xlabel="moment $s$", xlim=(-0.05, 3))
    row[0].set_ylabel("heard, $\\cos w_1s+\\cos w_2s$")
    return figure


def planes(lands: Sequence[Land], points: Sequence[Tensor] | None = None) -> Figure:
    """One plane a chord: its loss surface, rings at the eight perfect networks, and networks [n, 2] as dots."""
    figure, row = plt.subplots(1, len(lands), figsize=(WIDTH, 3.0))
    for i, (axes, surface) in enumerate(zip(row, lands, strict=True)):
        image = _terrain(axes, surface)
        _plane(axes, surface.chord.name.replace(" and ", "\nand "), left=i == 0)
        _minima(axes, surface.chord)
        if points is not None:
            _dots(axes, points[i], surface.colour, 10)
    bar = figure.colorbar(image, ax=row, shrink=0.75, aspect=28, label="root of the test loss", ticks=(0, 0.6, 1.2, 1.8))
    bar.outline.set_visible(False)
    return figure


def bridge(surface: Land, parents: Tensor, losses: Tensor) -> Figure:
    """Two parents [2, 2] in the plane with their mean, and the loss [s] along the line that joins them."""
    figure, (plane, profile) = plt.subplots(1, 2, figsize=(WIDTH, 3.3), width_ratios=(1, 1.35))
    colour, middle = surface.colour, parents.mean(dim=0)
    _terrain(plane, surface)
    _plane(plane, "two networks and their mean")
    _minima(plane, surface.chord, 30)
    plane.plot(*parents.numpy().T, color=INK, linewidth=1.5, zorder=3)
    plane.scatter(*parents.numpy().T, s=80, color=colour, zorder=4)
    plane.scatter(*middle.numpy(), s=110, marker="X", color=INK, zorder=4)
    along = np.linspace(0, 1, len(losses))
    profile.plot(along, losses, color=colour, linewidth=2.5)
    profile.scatter([0, 1], losses[[0, -1]], s=80, color=colour, zorder=4, clip_on=False)
    profile.scatter(0.5, losses[len(losses) // 2], s=110, marker="X", color=INK, zorder=4)
    profile.set(title="the loss on the way", ylabel="test loss", xticks=(0, 0.5, 1), ylim=(0, None))
    profile.set_xticklabels(("one network", "their mean", "another"))
    return figure


def straight_paths(x_0: Tensor, x_1: Tensor, x_t: Tensor, task: Tensor, losses: Sequence[float]) -> Figure:
    """Straight paths from noise x_0 to networks x_1 of a `task`, both [n, 2], a point x_t on each, and the training loss."""
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(WIDTH, 3.7), width_ratios=(1, 1.2))
    colours = [list(COLOURS.values())[number] for number in task]
    plane.add_collection(LineCollection(np.stack([x_0, x_1], axis=1), colors=colours, linewidths=1.2, alpha=0.5))
    plane.scatter(*x_0.T, s=26, facecolor="white", edgecolor=GREY, linewidth=1.3, zorder=2, label="noise $x_0$")
    plane.scatter(*x_t.T, s=9, color=INK, linewidth=0, zorder=3, label="$x_t$ on the way")
    plane.scatter(*x_1.T, s=34, color=colours, linewidth=0, zorder=3)
    for chord, colour in COLOURS.items():
        plane.scatter([], [], s=34, color=colour, linewidth=0, label=f"$x_1$, {chord.name}")
    _plane(plane, "what the flow is taught")
    plane.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=10, handletextpad=0)
    mean = pd.Series(losses).rolling(max(1, len(losses) // 40), center=True, min_periods=1).mean()
    curve.plot(losses, color=GREY, linewidth=0.6, alpha=0.6)
    curve.plot(mean, color=INK, linewidth=2)
    curve.annotate("each batch", (0.55 * len(losses), max(losses[len(losses) // 2 :])), color="#6b7780", va="bottom")
    curve.annotate("running mean", (0.55 * len(losses), min(losses) - 0.03), color=INK, va="top")
    curve.set(title="how it learns", xlabel="training step", ylabel="flow-matching loss", ylim=(0, None))
    return figure


def field(surface: Land, places: Tensor, arrows: Mapping[float, Tensor]) -> Figure:
    """The velocity field of one chord at some times: time → arrows [n, 2] at the places [n, 2]."""
    figure, row = plt.subplots(1, len(arrows), figsize=(WIDTH, 3.1))
    for axes, (t, velocity) in zip(row, arrows.items(), strict=True):
        axes.set_facecolor(PALE)
        axes.quiver(*places.T, *velocity.T, color=surface.colour, angles="xy", scale_units="xy", scale=6, width=0.007, zorder=3)
        _minima(axes, surface.chord)
        _plane(axes, f"$t = {t:g}$", left=axes is row[0])
    return figure


def _tails(axes: Axes, path: np.ndarray, colour: str) -> None:
    """Trajectories path [s, n, 2] as fine lines that gain colour along the way, in five pieces: quick to draw."""
    cuts = np.linspace(0, len(path) - 1, 6).astype(int)
    for piece, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        lines = path[start : stop + 1].swapaxes(0, 1)
        axes.add_collection(LineCollection(lines, colors=colour, alpha=0.07 * (piece + 1), linewidths=0.7, zorder=2))


def moments(lands: Sequence[Land], paths: Sequence[Tensor], times: Sequence[float] = (0, 0.5, 0.75, 1)) -> Figure:
    """A row a chord, a column a time: where trajectories [s, n, 2] are then; below, what the last chord's networks compute."""
    figure, grid = plt.subplots(len(lands) + 1, len(times), figsize=(WIDTH, 7.8))
    for row, surface, path in zip(grid, lands, paths, strict=False):
        for axes, t in zip(row, times, strict=True):
            axes.set_facecolor(PALE)
            _minima(axes, surface.chord, 30)
            _dots(axes, path[round(t * (len(path) - 1))], surface.colour, 13, alpha=1)
            _plane(axes, f"$t = {t:g}$" if surface is lands[0] else "", left=t == 0, bottom=surface is lands[-1])
        row[0].set_ylabel(f"{surface.chord.name}\nweight $w_2$")
    for axes, t in zip(grid[-1], times, strict=True):
        _curves(axes, surface.chord, surface.colour, path[round(t * (len(path) - 1)), :6])
        axes.tick_params(labelleft=t == 0)
    grid[-1, 0].set_ylabel(f"{surface.chord.name}\nheard")
    return figure


def moment(surface: Land, path: Tensor, now: int) -> Figure:
    """One instant `now` of trajectories [s, n, 2]: the plane, and the curves of sixteen of its networks."""
    figure = free_figure(WIDTH, 3.4)  # solving for the layout would take longer than drawing, and the picture would jump
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.14, "top": 0.9, "wspace": 0.22}
    plane, curves = figure.subplots(1, 2, width_ratios=(1, 1.25), gridspec_kw=margins)
    _terrain(plane, surface)
    _tails(plane, path[: now + 1, :30].numpy(), surface.colour)
    _minima(plane, surface.chord)
    _dots(plane, path[now], surface.colour, 12)
    _plane(plane, f"{surface.chord.name}, $t = {now / (len(path) - 1):.2f}$")
    _curves(curves, surface.chord, surface.colour, path[now, :16])
    curves.set(title="sixteen networks' curves; dark: the true chord", ylabel="heard, $\\cos w_1s+\\cos w_2s$")
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
        "now": IntSlider(last, 0, last, description=f"time / {last}", continuous_update=False),
    }
    return Panel(lambda chord, seed, now: moment(lands[chord], films[seed, chord], now), controls, width=592, height=272)


def folding(zoo: PlaneZoo, shown: int = 240) -> Figure:
    """Some networks of a zoo on a sheet of paper that is folded three times; a dot keeps its first sheet's colour."""
    w = zoo.weights[:shown].numpy()
    octant = ((np.arctan2(w[:, 1], w[:, 0]) + 2 * np.pi) // (np.pi / 4)).astype(int) % 8
    colours = np.array(PALETTE)[octant]
    half, quarter = np.stack([np.abs(w[:, 0]), w[:, 1]], 1), np.abs(w)
    stages = (w, half, quarter, np.sort(quarter, axis=1)[:, ::-1])
    titles = ("the whole sheet", "fold at $w_1=0$", "fold at $w_2=0$", "fold at $w_1=w_2$")
    r = EXTENT
    papers = ([(-r, -r), (r, -r), (r, r), (-r, r)], [(0, -r), (r, -r), (r, r), (0, r)], [(0, 0), (r, 0), (r, r), (0, r)])
    figure, row = plt.subplots(1, 4, figsize=(WIDTH, 2.8), width_ratios=(2, 1, 1.6, 1.6))
    for axes, points, title, paper in zip(row, stages, titles, (*papers, [(0, 0), (r, 0), (r, r)]), strict=True):
        axes.fill(*np.array(paper).T, color=PALE, linewidth=0)
        axes.scatter(*points.T, s=13, c=colours, linewidth=0.3, edgecolor="white")
        _plane(axes, title)
        axes.set(xlim=(paper[0][0] - 0.3, r), ylim=(paper[0][1] - 0.3, r), ylabel="weight $w_2$" if axes is row[0] else "")
    return figure
