"""Figures of notebook 05 and its episode panel, pure functions: data in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ipywidgets import Dropdown, IntSlider
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flownlib.extensions.episodes import Episodes
from flownlib.extensions.fewshot import Method, fewer
from flownlib.plots import charts
from flownlib.plots.charts import Measure
from flownlib.plots.panel import Panel
from flownlib.plots.style import RED, colour_of, free_figure, glyphs, name_of
from flownlib.statistics import Interval

# the rows of every table and figure, from the ceiling down
METHODS = (
    "many_shot_oracle",
    "plda",
    "caml",
    "logistic_regression",
    "centroid",
    "cross_entropy_only",
    "flown_query",
    "flown_ensemble_10",
    "flown_mean",
    "flown_sample",
)
DOMAINS = {"in": "other characters, known scripts", "ood": "held-out alphabets", "far": "real handwriting"}


def episodes(shown: Mapping[str, Episodes]) -> Figure:
    """The first of some episodes of images: support on the left, queries on the right, a class a row."""
    fig, axes = plt.subplots(len(shown), 2, figsize=(5.6, 2.1 * len(shown)), width_ratios=[5, 6])
    for (left, right), (name, found) in zip(np.atleast_2d(axes), shown.items(), strict=True):
        for ax, images in ((left, found.support_x), (right, found.query_x)):
            glyphs(ax, images[0, :, 0].unflatten(0, (found.way, -1)))
        left.set_ylabel(DOMAINS[name], fontsize=10)
    axes = np.atleast_2d(axes)
    axes[0, 0].set_title("support: labelled")
    axes[0, 1].set_title("queries: to be labelled")
    return fig


def comparison(
    intervals: Mapping[tuple[str, str, int], Interval], shots: Sequence[int], xlabel: str = "test accuracy"
) -> Figure:
    """An interval for each (method, domain, shot): a row of panels a shot, a column a domain; differences on one axis."""
    cells = pd.DataFrame({"method": m, "panel": (domain, shot), **asdict(i)} for (m, domain, shot), i in intervals.items())
    low, high = cells["low"].min(), cells["high"].max()
    room = 0.04 * (high - low)
    # differences share one axis, or their sizes could not be compared; accuracies of three domains would be crushed by it
    look = {"ideal": 0.0, "limits": (low - room, high + room)} if low < 0 else {}
    panels = {
        (domain, shot): Measure(f"{title}\n{shot} image{'s' if shot > 1 else ''} a class", **look)
        for shot in shots
        for domain, title in DOMAINS.items()
    }
    rows = [method for method in METHODS if method in set(cells["method"])]
    return charts.comparison(cells, panels, rows, panel="panel", columns=len(DOMAINS), xlabel=xlabel)


def predictions(seen: Episodes, known: Episodes, methods: Mapping[str, Method], chosen: str) -> Figure:
    """One episode: its support, its queries, those that the chosen method gets wrong framed with the label it gave, all errors.

    Args:
        seen, known: the same single episode as images and as features.
    """
    fig = free_figure(11, 4.4)
    answers = {name: method(known)[0].argmax(-1) for name, method in methods.items()}
    support, queries = (x[0, :, 0].unflatten(0, (seen.way, -1)) for x in (seen.support_x, seen.query_x))
    left, middle = fig.add_axes((0.02, 0.04, 0.22, 0.8)), fig.add_axes((0.26, 0.04, 0.33, 0.8))
    glyphs(left, support)
    glyphs(middle, queries)
    size, letters = queries.shape[-1], "ABCDE"
    left.set_yticks([(row + 0.5) * size for row in range(seen.way)], letters[: seen.way], fontsize=12)
    left.tick_params(length=0)
    left.set_title("support", fontsize=10)
    middle.set_title(f"queries; a frame and a letter: what\n“{name_of(chosen)}” got wrong", fontsize=10)
    given = answers[chosen].unflatten(0, (seen.way, -1))
    for (row, column), label in np.ndenumerate(given.cpu().numpy()):
        if label != row:
            x, y = column * size, row * size
            middle.add_patch(plt.Rectangle((x + 0.5, y + 0.5), size - 2, size - 2, fill=False, ec=RED, lw=2.5))
            middle.text(x + 3, y + 3, letters[label], color=RED, fontsize=12, fontweight="bold", va="top")
    _errors(fig.add_axes((0.81, 0.12, 0.15, 0.72)), {m: int((a != known.query_y).sum()) for m, a in answers.items()}, chosen)
    return fig


def _errors(ax: Axes, wrong: Mapping[str, int], chosen: str) -> None:
    for place, (name, count) in enumerate(wrong.items()):
        ax.barh(place, count, color=colour_of(name), alpha=1 if name == chosen else 0.45)
        ax.text(count, place, f" {count}", va="center", fontsize=10)
    ax.set_yticks(range(len(wrong)), [name_of(name) for name in wrong], fontsize=9)
    ax.set(xlim=(0, max(5, *wrong.values()) * 1.15), ylim=(len(wrong) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_title("queries labelled wrong", fontsize=10)


def episode_panel(pairs: Mapping[str, tuple[Episodes, Episodes]], methods: Mapping[str, Method], shots: Sequence[int]) -> Panel:
    """Draw your own episode: choose the domain, the number of labelled images, the episode, and whose labels to look at.

    Args:
        pairs: domain → the same episodes as images and as features.
    """
    count = min(len(seen) for seen, _ in pairs.values())

    def draw(domain: str, shot: int, episode: int, method: str) -> Figure:
        seen, known = (fewer(found.at([episode]), shot) for found in pairs[domain])
        return predictions(seen, known, methods, method)

    controls = {
        "domain": Dropdown(options=[(DOMAINS[name], name) for name in pairs], description="domain"),
        "shot": Dropdown(options=list(shots), description="images"),
        "episode": IntSlider(0, 0, count - 1, description="episode", continuous_update=False),
        "method": Dropdown(options=[(name_of(name), name) for name in methods], description="labels by"),
    }
    return Panel(draw, controls, 880, 352)
