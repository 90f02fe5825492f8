"""Figures of notebook 05 and its episode panel, pure functions: data in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ipywidgets import Dropdown, IntSlider
from matplotlib.figure import Figure

from flownlib.extensions.episodes import Episodes
from flownlib.extensions.fewshot import Method, accuracy, fewer
from flownlib.plots import charts
from flownlib.plots.charts import Measure
from flownlib.plots.panel import Panel
from flownlib.plots.style import GREEN, RED, colour_of, free_figure, glyphs, name_of
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
DOMAINS = {"in": "new characters, known scripts", "ood": "held-out alphabets", "far": "real handwriting"}


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
    """An interval for each (method, domain, shot): a row of panels a shot, a column a domain; differences with a line at 0."""
    cells = [{"method": m, "panel": (domain, shot), **asdict(value)} for (m, domain, shot), value in intervals.items()]
    differences = any(interval.low < 0 for interval in intervals.values())
    panels = {
        (domain, shot): Measure(f"{title}\n{shot} image{'s' if shot > 1 else ''} a class", 0.0 if differences else None)
        for shot in shots
        for domain, title in DOMAINS.items()
    }
    rows = [method for method in METHODS if any(cell["method"] == method for cell in cells)]
    return charts.comparison(pd.DataFrame(cells), panels, rows, panel="panel", columns=len(DOMAINS), xlabel=xlabel)


def predictions(seen: Episodes, known: Episodes, methods: Mapping[str, Method], chosen: str) -> Figure:
    """One episode: its support, its queries framed by whether the chosen method labels them right, every method's accuracy.

    Args:
        seen, known: the same single episode as images and as features.
    """
    fig = free_figure(11, 4.4)
    logits = {name: method(known) for name, method in methods.items()}
    support, queries = (x[0, :, 0].unflatten(0, (seen.way, -1)) for x in (seen.support_x, seen.query_x))
    left, middle = fig.add_axes((0.0, 0.04, 0.24, 0.8)), fig.add_axes((0.25, 0.04, 0.33, 0.8))
    glyphs(left, support)
    glyphs(middle, queries)
    left.set_title("support", fontsize=10)
    middle.set_title(f"queries, labelled by\n{name_of(chosen)}", fontsize=10)
    right = (logits[chosen].argmax(-1) == known.query_y)[0].unflatten(0, (seen.way, -1))
    size = queries.shape[-1]
    for (row, column), good in np.ndenumerate(right.cpu().numpy()):
        colour = GREEN if good else RED
        place = (column * size + 0.5, row * size + 0.5)
        middle.add_patch(plt.Rectangle(place, size - 2, size - 2, fill=False, ec=colour, lw=2.5))
    ax = fig.add_axes((0.83, 0.12, 0.16, 0.72))
    for place, (name, values) in enumerate(logits.items()):
        ax.barh(place, accuracy(values, known).item(), color=colour_of(name), alpha=1 if name == chosen else 0.5)
    ax.set_yticks(range(len(logits)), [name_of(name) for name in logits], fontsize=9)
    ax.set(xlim=(0, 1), title="accuracy on this episode")
    ax.title.set_fontsize(10)
    ax.invert_yaxis()
    return fig


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
