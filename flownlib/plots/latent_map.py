"""The latent map: a plane through latent space, decoded point by point beforehand, so that two sliders can walk on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ipywidgets import IntSlider
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.encoders import Encoder
from flownlib.networks import Classifier
from flownlib.plots.encoders import clouds
from flownlib.plots.panel import Panel
from flownlib.plots.style import INK, RED, filter_rows, free_figure, name_of, prediction_bars
from flownlib.scoring import Task, logits_of

SHOWN = 6  # test images whose predictions are shown


@dataclass(frozen=True)
class LatentMap:
    """A grid of g × g decoded points, rows from low to high y, and the networks that define the plane.

    points [n, 2] and labels of the networks; x and y [g]; accuracy [tasks, g, g]; filters [g, g, f, k, k]; by task the
    images [tasks, images, h, w], their answers [tasks, images] and the class probabilities [tasks, g, g, images, classes].
    """

    tasks: Sequence[str]
    points: Tensor
    labels: Sequence[str]
    x: Tensor
    y: Tensor
    accuracy: Tensor
    filters: Tensor
    images: Tensor
    answers: Tensor
    probabilities: Tensor


def plane(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Centre [k] and the two largest principal axes [2, k] of latents [n, k]."""
    centre = latents.mean(0)
    return centre, torch.linalg.svd(latents - centre, full_matrices=False)[2][:2]


@torch.no_grad()
def survey(
    encoder: Encoder,
    model: Classifier,
    weights: Tensor,
    labels: Sequence[str],
    tasks: Mapping[str, Task],
    stops: int = 21,
    images: int = 500,
) -> LatentMap:
    """Encode networks [n, p], span the plane of their two largest axes, decode a grid on it and test it on every task."""
    latents = encoder.encode(weights)
    centre, axes = plane(latents)
    points = (latents - centre) @ axes.T
    low, high = points.amin(0), points.amax(0)
    margin = 0.05 * (high - low)
    x, y = (torch.linspace(float(a), float(b), stops) for a, b in zip(low - margin, high + margin, strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
    decoded = encoder.decode(centre + grid.to(axes) @ axes)
    accuracy, pictures, answers, probabilities = [], [], [], []
    for task in tasks.values():
        split = task.test
        right = logits_of(model, decoded, split.x[:images]).argmax(-1) == split.y[:images]
        accuracy.append(right.float().mean(1).view(stops, stops))
        chosen = torch.stack([(split.y == label).nonzero()[0, 0] for label in range(SHOWN)])
        pictures.append(split.x[chosen, 0])
        answers.append(split.y[chosen])
        probabilities.append(logits_of(model, decoded, split.x[chosen]).softmax(-1).unflatten(0, (stops, stops)))
    filters = model.layout.unflatten(decoded)[f"{model.layer_names[0]}.weight"][:, :, 0].unflatten(0, (stops, stops))
    found = [torch.stack(parts).cpu() for parts in (accuracy, pictures, answers, probabilities)]
    return LatentMap(list(tasks), points.cpu(), labels, x, y, found[0], filters.cpu(), *found[1:])


def draw(found: LatentMap, column: int, row: int) -> Figure:
    """The map with one point marked, and the network that the point decodes to."""
    best = int(found.accuracy[:, row, column].argmax())
    fig = free_figure(11, 4.6)
    _draw_map(fig, found, column, row)
    ax = fig.add_axes((0.58, 0.67, 0.40, 0.16))
    filter_rows(ax, found.filters[row, column][None])
    ax.set_title("decoded first-layer filters", fontsize=10)
    scores = ", ".join(f"{name_of(name)} {found.accuracy[i, row, column]:.2f}" for i, name in enumerate(found.tasks))
    fig.text(0.78, 0.98, f"accuracy of the network at this point\n{scores}", ha="center", va="top", fontsize=9, color=INK)
    pictures, bars = fig.add_axes((0.58, 0.36, 0.40, 0.17)), fig.add_axes((0.58, 0.13, 0.40, 0.22))
    prediction_bars(pictures, bars, found.images[best], found.answers[best], found.probabilities[best, row, column])
    label_bars(bars, found.answers[best].tolist())
    title = f"its predictions on six test images of {name_of(found.tasks[best])} (green: the right class)"
    pictures.set_title(title, fontsize=10)
    return fig


def label_bars(ax: Axes, answers: Sequence[int]) -> None:
    """Name a probability axis, and below each image's ten classes the right one."""
    places = [place + 0.5 for place in range(len(answers))]
    ax.set(yticks=(0, 1), ylabel="probability", xticks=places, xticklabels=[f"class {answer}" for answer in answers])
    ax.tick_params(labelsize=8, bottom=False)


def _draw_map(fig: Figure, found: LatentMap, column: int, row: int) -> None:
    ax = fig.add_axes((0.06, 0.13, 0.36, 0.82))
    corners = (float(found.x[0]), float(found.x[-1]), float(found.y[0]), float(found.y[-1]))
    best = found.accuracy.amax(0).cpu().numpy()
    shades = ax.imshow(best, extent=corners, origin="lower", aspect="auto", cmap="Greys_r", vmin=0, vmax=1)
    scale = fig.colorbar(shades, cax=fig.add_axes((0.43, 0.13, 0.012, 0.82)))
    scale.set_label("accuracy on the task it is best at", fontsize=9)
    clouds(ax, found.points, found.labels, size=9)
    ax.scatter(float(found.x[column]), float(found.y[row]), s=150, facecolors="none", edgecolors=RED, lw=2.4, zorder=4)
    ax.set(xlabel="first latent axis (standard deviations)", ylabel="second latent axis", xlim=corners[:2], ylim=corners[2:])


def latent_walk(found: LatentMap) -> Panel:
    """Two sliders, one for each axis of the map."""
    middle, last = len(found.x) // 2, len(found.x) - 1
    controls = {
        "column": IntSlider(middle, 0, last, description="first axis", continuous_update=False),
        "row": IntSlider(middle, 0, last, description="second axis", continuous_update=False),
    }
    return Panel(lambda column, row: draw(found, column, row), controls, width=880, height=368)
