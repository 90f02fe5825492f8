"""Figures of notebook 04: episodes, and the characters that they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.extensions.episodes import FAR, Episodes
from flownlib.plots.charts import image_rows
from flownlib.plots.style import glyphs, name_of


def task_name(task: str) -> str:
    """A test task's name in words."""
    return "handwritten digits" if task == FAR else name_of(task).title()


def supports(episodes: Episodes, places: Sequence[int], shown: int = 2) -> Figure:
    """The support images of some episodes: a row each, its classes from left to right, `shown` images of each class."""
    images = episodes.support_x[list(places), :, 0].unflatten(1, (episodes.way, -1))[:, :, :shown].flatten(1, 2)
    return image_rows(dict(zip([task_name(episodes.names[place]) for place in places], images, strict=True)))


def glyph_wall(pool: Tensor, columns: int = 24, rows: int = 6) -> Figure:
    """One image of each of some classes of a pool [classes, k, 1, 28, 28], evenly spread over the pool."""
    columns = min(columns, len(pool))
    rows = min(rows, len(pool) // columns)
    classes = torch.linspace(0, len(pool) - 1, rows * columns).long()
    fig, ax = plt.subplots(figsize=(9.5, 0.4 * rows + 0.4))
    glyphs(ax, pool[classes, 0, 0].unflatten(0, (rows, columns)))
    ax.set_title(f"{len(classes)} of {len(pool)} characters, one image of each")
    return fig
