"""The trajectory explorer: everything is computed beforehand, the sliders only choose what is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from ipywidgets import Dropdown, IntSlider
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.classifiers import Classifier
from flownlib.figures import GREY, INK, PALETTE, filter_strip, free_figure, prediction_bars
from flownlib.generators import FlowGenerator
from flownlib.panel import Panel
from flownlib.scoring import score
from flownlib.tasks import Task


@dataclass(frozen=True)
class Recording:
    """Trajectories of one task, decoded: times [s], projected points [s, n, 2], accuracies [s, n], and for each
    network its first-layer filters [s, n, f, k, k] and class probabilities [s, n, images, classes]."""

    task: str
    t: Tensor
    points: Tensor
    accuracy: Tensor
    filters: Tensor
    images: Tensor  # [images, h, w]
    labels: Tensor
    probabilities: Tensor


@torch.no_grad()
def record(
    generator: FlowGenerator, task: Task, y: Tensor, x_0: Tensor, axes: Tensor, model: Classifier, stops: int, images: int = 6
) -> Recording:
    """Integrate from x_0 [n, k] under context y and decode every stop; `axes` [2, k] is the plane of the picture."""
    trajectory = generator.trajectory(x_0, y, steps=stops)
    weights = generator.encoder.decode(trajectory.x.flatten(0, 1))
    s, n = trajectory.x.shape[:2]
    chosen = torch.stack([(task.test.y == label).nonzero()[0, 0] for label in range(images)])
    probabilities = model.forward(weights, task.test.x[chosen]).softmax(-1)
    some = slice(0, min(500, len(task.test)))  # enough for a colour; the tables use all test images
    accuracy = score(model, weights, task.test.x[some], task.test.y[some]).accuracy
    return Recording(
        task.name,
        trajectory.t,
        trajectory.x @ axes.T,
        accuracy.view(s, n),
        model.layout.views(weights)[f"{model.layer_names[0]}.weight"][:, :, 0].unflatten(0, (s, n)),
        task.test.x[chosen, 0],
        task.test.y[chosen],
        probabilities.unflatten(0, (s, n)),
    )


def draw(recording: Recording, stop: int, network: int) -> Figure:
    """One moment of one network: its place among all trajectories, its filters, its accuracy so far, its predictions."""
    fig = free_figure(11, 5.2)
    _draw_paths(fig, recording, stop, network)
    filter_strip(fig.add_axes((0.55, 0.78, 0.43, 0.13)), recording.filters[stop, network])
    _draw_accuracy(fig.add_axes((0.55, 0.50, 0.43, 0.20)), recording, stop, network)
    axes = fig.add_axes((0.55, 0.20, 0.43, 0.13)), fig.add_axes((0.55, 0.03, 0.43, 0.16))
    prediction_bars(*axes, recording.images, recording.labels, recording.probabilities[stop, network])
    axes[0].set_title("predictions on six test images (green: the right class)", fontsize=10)
    return fig


def _draw_paths(fig: Figure, recording: Recording, stop: int, network: int) -> None:
    ax, points = fig.add_axes((0.075, 0.27, 0.385, 0.67)), recording.points
    segments = torch.stack([points[:-1], points[1:]], dim=2).flatten(0, 1).numpy()
    lines = LineCollection(segments, cmap="viridis", lw=1.2, alpha=0.45, clim=(0, 1))
    lines.set_array(recording.accuracy[1:].flatten().numpy())
    ax.add_collection(lines)
    dots = ax.scatter(
        *points[stop].T.numpy(), c=recording.accuracy[stop].numpy(), cmap="viridis", vmin=0, vmax=1, s=22, zorder=3
    )
    ax.scatter(*points[stop, network].tolist(), s=170, facecolors="none", edgecolors=PALETTE[1], lw=2.2, zorder=4)
    ax.autoscale()
    ax.set(title=f"{recording.task}, t = {recording.t[stop]:.2f}", xlabel="first latent axis", ylabel="second latent axis")
    fig.colorbar(dots, cax=fig.add_axes((0.075, 0.11, 0.385, 0.03)), orientation="horizontal", label="test accuracy")


def _draw_accuracy(ax: plt.Axes, recording: Recording, stop: int, network: int) -> None:
    ax.plot(recording.t.numpy(), recording.accuracy.numpy(), color=GREY, lw=0.8, alpha=0.4)
    ax.plot(recording.t.numpy(), recording.accuracy[:, network].numpy(), color=PALETTE[1], lw=2)
    ax.axvline(recording.t[stop], color=INK, lw=1)
    ax.set(xlabel="flow time t", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def trajectory_explorer(recordings: dict[str, Recording]) -> Panel:
    """Sliders over recorded trajectories: task, flow time, network."""
    first = next(iter(recordings.values()))
    controls = {
        "task": Dropdown(options=list(recordings), description="task"),
        "stop": IntSlider(0, 0, len(first.t) - 1, description="flow time", continuous_update=False),
        "network": IntSlider(0, 0, first.points.shape[1] - 1, description="network", continuous_update=False),
    }
    return Panel(lambda task, stop, network: draw(recordings[task], stop, network), controls, 880, 416)
