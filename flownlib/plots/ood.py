"""Figures of notebook 04: episodes, the characters that they are drawn from, and what a reward changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.extensions.episodes import Episodes
from flownlib.plots.charts import image_rows
from flownlib.plots.style import PALETTE, glyphs, name_of


def supports(episodes: Episodes, places: Sequence[int], shown: int = 2) -> Figure:
    """The support images of some episodes: a row each, its classes from left to right, `shown` images of each class."""
    images = episodes.support_x[list(places), :, 0].unflatten(1, (episodes.way, -1))[:, :, :shown].flatten(1, 2)
    return image_rows(dict(zip([episodes.names[place] for place in places], images, strict=True)))


def glyph_wall(pool: Tensor, columns: int = 32, rows: int = 6) -> Figure:
    """One image of each of some classes of a pool [classes, k, 1, 28, 28], evenly spread over the pool."""
    columns = min(columns, len(pool))
    rows = min(rows, len(pool) // columns)
    classes = torch.linspace(0, len(pool) - 1, rows * columns).long()
    fig, ax = plt.subplots(figsize=(9.5, 0.3 * rows + 0.1))
    glyphs(ax, pool[classes, 0, 0].unflatten(0, (rows, columns)))
    return fig


def rewards(accuracies: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Test accuracy before and after reward fine-tuning, an episode a line; "before", then any number of rewards."""
    after = [name for name in accuracies if name != "before"]
    fig, axes = plt.subplots(1, len(after), figsize=(9.5, 3.4), sharey=True, squeeze=False)
    colours = dict(zip(dict.fromkeys(names), PALETTE, strict=False))
    for ax, reward in zip(axes[0], after, strict=True):
        lines = torch.stack([accuracies["before"], accuracies[reward]]).T.tolist()
        for line, name in zip(lines, names, strict=True):
            ax.plot([0, 1], line, "o-", color=colours[name], lw=2, label=name_of(name))
        ax.set(title=f"reward on {reward.replace('_', '-')} support images", xlim=(-0.2, 1.2))
        ax.set_xticks([0, 1], ["before", "after"])
    axes[0, 0].set_ylabel("test accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    fig.legend(unique.values(), unique.keys(), loc="outside right center")
    return fig
