"""One style, one palette, and for every method one name, one colour and one marker; what all figures draw with.

There are more methods than colours that can be told apart, so a colour is a family's: a row is named beside its axis, a point
by a label, and where methods of one family are lines of one chart, `marker_of` tells them apart. Things that have an order
(epochs, steps, accuracies) take `ordered` colours, from dark to light, not the palette's.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

# any two differ by a CIEDE2000 of 16 or more in normal, deuteranope and protanope vision: tests/test_style.py
INK, GREY = "#1c2d3b", "#9ba8b1"
PALETTE = ["#4472df", "#bc650b", "#146549", "#67089d", "#f4ad21", "#43b8ff", "#820000", "#e14d7c"]
BLUE, ORANGE, GREEN, VIOLET, GOLD, SKY, RED, PINK = PALETTE
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # colour maps: from little to much, and around zero
MARKERS = "osD^vPX*<>"
PALE = "#f3f5f7"

# colour → the methods that have it in every figure; an identifier stands for all that begin with it
COLOURS = {
    INK: "zoo_held_out full_fine_tuning many_shot_oracle",
    BLUE: "latent_flow weight_flow deep_weight_flow neuron_flow pca_flow flow vae",
    VIOLET: "latent_ddpm latent_ddim p_diff kernel_density hypernetwork softmax_logistic plda",
    ORANGE: "retrieval noise soup gaussian interpolation weight_space zoo_average",
    GREEN: "matched corrected lora prototypical_logistic logistic_regression",
    SKY: "pca linear prototypical_centroid centroid",
    RED: "class_tokens flown_query cross_entropy_only",
    GOLD: "class_tokens_imitating flown_ensemble flown_mean flown_sample",
    PINK: "retrieval_matched caml",
    GREY: "fresh kaiming head_only",
}
METHODS = {method: colour for colour, methods in COLOURS.items() for method in methods.split()}
# what an identifier or its beginning is called, where that is not the identifier with spaces
NAMES = {
    "zoo_held_out": "held-out networks",
    "latent_ddpm": "latent DDPM",
    "latent_ddim": "latent DDIM",
    "p_diff": "p-diff",
    "gaussian": "Gaussian",
    "gaussian_diagonal": "diagonal Gaussian",
    "pca": "PCA",
    "vae": "VAE",
    "vae_conv1d": "VAE, convolutions",
    "lora": "LoRA",
    "plda": "PLDA",
    "caml": "CAML",
    "fresh": "fresh networks",
    "kaiming": "Kaiming",
    "head_only": "head alone",
    "full_fine_tuning": "full fine-tuning",
    "matched": "activation matching",
    "corrected": "Gaussian + corrector",
    "corrected_flow": "flow + corrector",
    "class_tokens": "class tokens: imitation, then queries",
    "class_tokens_imitating": "class tokens: imitation only",
    "class_tokens_queries_only": "class tokens: queries only",
    "prototypical_centroid": "prototypical body + centroid",
    "prototypical_centroid_3x": "prototypical body, 3 × the steps",
    "prototypical_logistic": "prototypical body + logistic",
    "softmax_logistic": "softmax body + logistic",
    "retrieval_matched": "retrieval, head matched",
    "many_shot_oracle": "ceiling: 40 images a class",
    "centroid": "nearest centroid",
    "cross_entropy_only": "generated: query loss only",
    "flown_query": "generated: imitation, then query loss",
    "flown_ensemble": "imitation, samples averaged",
    "flown_ensemble_10": "imitation, ten samples averaged",
    "flown_mean": "imitation, from the prior's mean",
    "flown_sample": "imitation, one sample",
}


def _family(method: str, known: Mapping[str, str]) -> str:
    return max((name for name in known if f"{method}_".startswith(f"{name}_")), key=len, default="")


def name_of(method: str) -> str:
    """A method's name in words; of an unknown one, or of a task, its identifier with spaces."""
    family = _family(method, NAMES)
    return NAMES.get(family, "") + method[len(family) :].replace("_", " ")


def colour_of(method: str) -> str:
    """The colour of a method in every figure; blue for what is not known."""
    return METHODS.get(_family(method, METHODS), BLUE)


def marker_of(method: str) -> str:
    """The marker of a method in every chart of lines: no two methods share both colour and marker."""
    family = _family(method, METHODS)
    return MARKERS[COLOURS[METHODS[family]].split().index(family)] if family else MARKERS[0]


def ordered(n: int) -> list[str]:
    """Colours for n things in their order, from dark to light; up to four can be told apart by their colours alone."""
    return [to_hex(colour) for colour in plt.get_cmap(SEQUENTIAL)(np.linspace(0, 0.95, n))]


def use_style() -> None:
    """The tutorial's look: quiet axes, one palette, type that is readable at 80 dpi; a notebook shows it at twice that."""
    if get_ipython():  # in a notebook
        set_matplotlib_formats("retina")  # 160 pixels an inch, shown at half their size
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "text.color": INK,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "figure.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "grid.color": "#e8ecef",
            "font.size": 11,
        }
    )


def free_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose axes stay where they are put: a layout engine would take most of a redraw."""
    fig = plt.figure(figsize=(width, height), layout="constrained")
    fig.set_layout_engine("none")  # layout="none" in the line above would be forgotten by savefig(bbox_inches="tight")
    return fig


def bare(ax: Axes) -> None:
    """Take away an axes' ticks and frame, but not its labels."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def glyphs(ax: Axes, images: Tensor) -> None:
    """Images [rows, columns, h, w] as one picture without axes, in eight greys: more would make a large file of noise."""
    picture = torch.cat([torch.cat(list(row), dim=1) for row in images]).cpu().numpy()
    ax.imshow(picture, cmap=plt.get_cmap("gray_r", 8), interpolation="nearest")
    bare(ax)


def filter_rows(ax: Axes, filters: Tensor, names: tuple[str, ...] = ()) -> AxesImage:
    """Filters [m, f, k, k], a network a row, as one picture with white gaps: it is drawn sooner than m f axes."""
    m, count, size = filters.shape[:3]
    gaps = torch.nn.functional.pad(filters, (0, 1, 0, 1), value=float("nan"))
    picture = gaps.transpose(1, 2).reshape(m * (size + 1), count * (size + 1))[:-1, :-1]
    limit = float(filters.abs().max())
    bare(ax)
    if names:
        ax.set_yticks([row * (size + 1) + (size - 1) / 2 for row in range(m)], names)
        ax.tick_params(length=0)
    return ax.imshow(picture.cpu().numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)


def prediction_bars(pictures: Axes, bars: Axes, images: Tensor, answers: Tensor, probabilities: Tensor) -> None:
    """Images [n, h, w] above their class probabilities [n, classes], the right class in green."""
    pictures.imshow(torch.cat(list(images), dim=1).cpu().numpy(), cmap="gray_r", aspect="auto")
    pictures.axis("off")
    bars.set(xlim=(0, len(images)), ylim=(0, 1), xticks=[], yticks=[])
    probability_lines(bars, answers, probabilities)


def probability_lines(ax: Axes, answers: Tensor, probabilities: Tensor) -> LineCollection:
    """Class probabilities [n, classes] as lines, for one collection is drawn far sooner than a patch for every bar."""
    count, classes = probabilities.shape
    places = torch.arange(count)[:, None] + (torch.arange(classes) + 0.5) / (classes + 1)
    right = torch.arange(classes) == answers[:, None]
    colors = [GREEN if r else GREY for r in right.flatten()]
    return ax.vlines(places.flatten().cpu().numpy(), 0, probabilities.flatten().cpu().numpy(), colors=colors, linewidth=4)
