"""Pictures of the plane of two weights (notebook 00). Every public function is pure: numbers in, a Figure out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from ipywidgets import IntSlider, SelectionSlider
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.chapters.c00_plane import CHORDS, EXTENT, NOISE, Chord, PlaneZoo, copies, loss_surface, predict
from flownlib.harness.pictures import smaller_png
from flownlib.plots.panel import Panel
from flownlib.statistics import Interval

INK, FAINT = "#26324A", "#8A94A6"
COLOURS = ("#0E7C86", "#D1495B", "#6A3FA0")  # low, middle and high chord
EIGHT = ("#0E7C86", "#3BA99C", "#E0A030", "#E2703A", "#D1495B", "#B0428A", "#6A3FA0", "#3D63B5")
LAND = LinearSegmentedColormap.from_list("land", ["#FFFFFF", "#F1F4F8", "#DCE3EC", "#BFCBDA", "#A3B3C8"])
STYLE = {
    "figure.dpi": 80,
    "savefig.dpi": 80,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlepad": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the notebook's style, and keep the figure from being shown twice."""

    @wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        with plt.style.context(STYLE, after_reset=True):  # whatever style is in use elsewhere
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return styled


@dataclass(frozen=True)
class Land:
    """A chord's loss surface, computed once: the axis [r] of both weights and the loss [r, r]."""

    chord: Chord
    axis: np.ndarray
    loss: np.ndarray


def land(chord: Chord, resolution: int = 181) -> Land:
    """The loss surface of a chord, ready to be drawn."""
    axis, loss = loss_surface(chord, resolution)
    return Land(chord, axis.numpy(), loss.numpy())


def colour_of(chord: Chord) -> str:
    """The chord's colour in every picture; ink for a chord that is not one of the three."""
    return COLOURS[CHORDS.index(chord)] if chord in CHORDS else INK


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


def png(figure: Figure, colours: int = 48) -> Image:
    """The figure as a PNG with a palette: a quarter of the bytes, so that a notebook full of pictures stays small."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image(smaller_png(buffer.getvalue(), colours))


@_styled
def chords_and_data(observations: Sequence[tuple[Tensor, Tensor]], chords: Sequence[Chord] = CHORDS) -> Figure:
    """Each chord's true curve with one network's noisy sample x, y [m]."""
    figure, row = plt.subplots(1, len(chords), figsize=(11.5, 3.5), sharey=True)
    grid = np.linspace(0, 3, 200)
    for axes, chord, (x, y) in zip(row, chords, observations, strict=True):
        curve = predict(chord.weights, Tensor(grid))[0]
        axes.fill_between(grid, curve - NOISE, curve + NOISE, color=colour_of(chord), alpha=0.1, linewidth=0)
        axes.plot(grid, curve, color=colour_of(chord), linewidth=2.5)
        axes.scatter(x, y, s=28, color=INK, linewidth=0, zorder=3)
        axes.set(title=f"{chord.name}:  notes {chord.high} and {chord.low}", xlabel="input $x$", xlim=(-0.05, 3))
    row[0].set_ylabel("output  $\\cos w_1x+\\cos w_2x$")
    return figure


@_styled
def planes(lands: Sequence[Land], points: Sequence[Tensor] | None = None, titles: Sequence[str] = ()) -> Figure:
    """One plane a chord: its loss surface, and either networks [n, 2] as dots or the eight perfect ones as rings."""
    figure, row = plt.subplots(1, len(lands), figsize=(11.5, 4.3))
    for i, (axes, surface) in enumerate(zip(row, lands, strict=True)):
        image = _terrain(axes, surface, lines=True)
        _plane(axes, titles[i] if titles else surface.chord.name)
        if points is None:
            _minima(axes, surface.chord)
        else:
            _dots(axes, points[i], colour_of(surface.chord), 10)
    bar = figure.colorbar(image, ax=row, shrink=0.75, aspect=28, label="root of the test loss", ticks=(0, 0.6, 1.2, 1.8))
    bar.outline.set_visible(False)
    return figure


@_styled
def bridge(surface: Land, parents: Tensor, losses: Tensor) -> Figure:
    """Two parents [2, 2] in the plane with their mean, and the loss [s] along the line that joins them."""
    figure, (plane, profile) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.35))
    colour, middle = colour_of(surface.chord), parents.mean(dim=0)
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


@_styled
def straight_paths(x_0: Tensor, x_1: Tensor, t: Tensor, x_t: Tensor, losses: Sequence[float]) -> Figure:
    """Straight paths from noise x_0 to networks x_1, both [n, 2], a point x_t on each, and the training loss."""
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.35))
    plane.add_collection(LineCollection(np.stack([x_0, x_1], axis=1), colors=FAINT, linewidths=0.7, alpha=0.5))
    plane.scatter(*x_0.T, s=14, color=FAINT, linewidth=0, label="noise $x_0$")
    plane.scatter(*x_1.T, s=22, color=EIGHT[3], linewidth=0, label="network $x_1$")
    plane.scatter(*x_t.T, s=16 * (0.4 + t), color=INK, linewidth=0, label="$x_t$ on the way", zorder=3)
    _plane(plane, "what the flow is taught")
    plane.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=10, handletextpad=0, columnspacing=0.8)
    window = max(1, len(losses) // 60)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    curve.plot(losses, color=FAINT, alpha=0.25, linewidth=0.7)
    curve.plot(np.arange(len(smooth)) + window / 2, smooth, color=EIGHT[3], linewidth=2.5)
    curve.set(title="how it learns", xlabel="training step", ylabel="conditional flow matching loss")
    curve.set_ylim(0.9 * smooth.min(), 1.05 * smooth.max())
    return figure


def _tails(axes: Axes, path: np.ndarray, colour: str, alpha: float = 0.35, width: float = 0.7) -> None:
    """Trajectories path [s, n, 2] as fine lines that gain colour along the way, in five pieces: quick to draw."""
    cuts = np.linspace(0, len(path) - 1, 6).astype(int)
    for piece, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        lines = path[start : stop + 1].swapaxes(0, 1)
        axes.add_collection(LineCollection(lines, colors=colour, alpha=alpha * (piece + 1) / 5, linewidths=width, zorder=2))


@_styled
def streams(lands: Sequence[Land], paths: Sequence[Tensor]) -> Figure:
    """Whole trajectories [s, n, 2], one plane a chord: noise in the middle, networks at the ends."""
    figure, row = plt.subplots(1, len(lands), figsize=(11.5, 4.3))
    for axes, surface, path in zip(row, lands, paths, strict=True):
        _terrain(axes, surface)
        _tails(axes, path.numpy(), colour_of(surface.chord), alpha=0.6)
        _dots(axes, path[0], FAINT, 5)
        _dots(axes, path[-1], colour_of(surface.chord), 12)
        _plane(axes, surface.chord.name)
    return figure


@_styled
def moments(lands: Sequence[Land], paths: Sequence[Tensor], times: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> Figure:
    """Small multiples: a row a chord, a column a time t, with the trajectories [s, n, 2] so far as fine lines."""
    figure, grid = plt.subplots(len(lands), len(times), figsize=(11.5, 7.2))
    for row, surface, path in zip(grid, lands, paths, strict=True):
        for axes, t in zip(row, times, strict=True):
            now = round(t * (len(path) - 1))
            _terrain(axes, surface)
            _tails(axes, path[: now + 1].numpy(), colour_of(surface.chord))
            _dots(axes, path[now], colour_of(surface.chord), 8)
            _plane(axes, f"$t = {t:g}$" if surface is lands[0] else "", labels=False)
        row[0].set_ylabel(surface.chord.name)
    return figure


@_styled
def moment(surface: Land, path: Tensor, now: int) -> Figure:
    """One instant `now` of trajectories [s, n, 2]: the plane, and the curves of forty of its networks."""
    # fixed margins: solving for the layout would take longer than drawing, and the picture would jump
    margins = {"left": 0.07, "right": 0.98, "bottom": 0.14, "top": 0.9, "wspace": 0.22}
    figure, (plane, curves) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1, 1.25), gridspec_kw=margins)
    figure.set_layout_engine("none")  # savefig(bbox_inches="tight") would forget layout="none"
    colour, grid = colour_of(surface.chord), np.linspace(0, 3, 100)
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


@_styled
def folding(zoo: PlaneZoo) -> Figure:
    """The zoo of [n, 2] on a sheet of paper that is folded three times; a dot keeps its first sheet's colour."""
    w = zoo.weights.numpy()
    octant = ((np.arctan2(w[:, 1], w[:, 0]) + 2 * np.pi) // (np.pi / 4)).astype(int) % 8
    colours = np.array(EIGHT)[octant]
    half, quarter = np.stack([np.abs(w[:, 0]), w[:, 1]], 1), np.abs(w)
    stages = (w, half, quarter, np.sort(quarter, axis=1)[:, ::-1])
    titles = ("the whole sheet", "fold at $w_1=0$", "fold at $w_2=0$", "fold at $w_1=w_2$")
    r = EXTENT
    papers = ([(-r, -r), (r, -r), (r, r), (-r, r)], [(0, -r), (r, -r), (r, r), (0, r)], [(0, 0), (r, 0), (r, r), (0, r)])
    figure, row = plt.subplots(1, 4, figsize=(11.5, 3.5))
    for axes, points, title, paper in zip(row, stages, titles, (*papers, [(0, 0), (r, 0), (r, r)]), strict=True):
        axes.fill(*np.array(paper).T, color="#F1F4F8", linewidth=0)
        axes.scatter(*points.T, s=5, c=colours, alpha=0.8, linewidth=0)
        _plane(axes, title, labels=axes is row[0])
    return figure


@_styled
def comparison(table: dict[str, dict[str, Sequence[Interval]]], limits: dict[str, tuple[float, float]]) -> Figure:
    """Methods × quantities with 95 % intervals: table[title][method] = (whole plane, folded plane), axes from limits.

    The first method is the reference that the thin vertical line marks.
    """
    figure, ((*row,),) = plt.subplots(1, len(table), figsize=(11.5, 4.6), sharey=True, squeeze=False)
    spaces = (("whole plane", COLOURS[1], -0.15), ("folded plane", COLOURS[0], 0.15))
    for axes, (title, methods) in zip(row, table.items(), strict=True):
        axes.axvline(next(iter(methods.values()))[0].value, color=FAINT, linewidth=1, alpha=0.6)
        for place, pair in enumerate(methods.values()):
            axes.axhspan(place - 0.4, place + 0.4, color="#F4F6F9", linewidth=0, zorder=0)
            for (label, colour, shift), one in zip(spaces, pair, strict=True):
                axes.plot([one.low, one.high], [place + shift] * 2, color=colour, linewidth=2.5, alpha=0.45)
                axes.scatter(one.value, place + shift, s=52, color=colour, zorder=3, label=None if place else label)
        axes.set(title=title, xlim=limits[title], xscale="log" if limits[title][0] > 0 else "linear")
        axes.minorticks_off()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    row[0].set_yticks(range(len(methods)), list(methods))
    row[0].invert_yaxis()
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
