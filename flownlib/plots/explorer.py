"""The trajectory explorer: networks on their way from noise, recorded, so that the sliders only choose what is drawn.

What is computed when: `trajectory_explorer` records the first combination of settings for every task before it is shown; any
other combination is recorded when it is first chosen (12 networks and 100 images keep that near a redraw's time) and kept.
The flow-time and network sliders compute nothing. A redraw paints the recording on a picture of the axes painted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from ipywidgets import FloatSlider, IntSlider, Layout, SelectionSlider
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.generators import FlowGenerator
from flownlib.networks import Classifier
from flownlib.plots.latent_map import label_bars
from flownlib.plots.panel import Backdrop, Panel
from flownlib.plots.style import GREY, INK, RED, filter_rows, free_figure, name_of, probability_lines
from flownlib.scoring import Task, score

SHOWN = 6  # test images whose predictions are shown
Prior = Callable[[int, torch.Generator], Tensor]  # (n, generator) → x_0 [n, k]


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
    clouds: Mapping[str, Tensor]  # by task, its networks [m, 2] in the same plane

    def stop(self, t: float) -> int:
        """The solver's stop that is nearest to the flow time t."""
        return int((self.t - t).abs().argmin())


@dataclass(frozen=True)
class Recorder:
    """Records trajectories of a generator under any settings.

    Args:
        contexts: task → y [c]. priors: name → prior. axes: the plane of the picture in latent space [2, k].
        networks: on their way at once. tested: test images behind the accuracies, which are for colour; tables use them all.
        seed: of x_0, the same for every combination of settings, so that the same noise is carried along each.
        latents: task → its training networks' latents [m, k], drawn behind the trajectories.
    """

    generator: FlowGenerator
    tasks: Mapping[str, Task]
    contexts: Mapping[str, Tensor]
    priors: Mapping[str, Prior]
    axes: Tensor
    model: Classifier
    networks: int = 12
    tested: int = 100
    seed: int = 0
    latents: Mapping[str, Tensor] = field(default_factory=dict)

    def choices(self) -> dict[str, Sequence]:
        """What `__call__` can be asked for, by argument."""
        return {
            "task": tuple(self.tasks),
            "prior": tuple(self.priors),
            "guidance": (1.0, 0.0, 2.0),
            "solver": ("euler", "midpoint", "rk4"),
            "steps": (20, 4, 2, 1),
        }

    @torch.no_grad()
    def __call__(self, task: str, prior: str, guidance: float, solver: str, steps: int) -> Recording:
        """Integrate from x_0 under the task's context, decode every stop of the solver and test what comes out."""
        x_0 = self.priors[prior](self.networks, torch.Generator().manual_seed(self.seed))
        trajectory = self.generator.trajectory(x_0, self.contexts[task], steps, solver, guidance)
        weights = self.generator.encoder.decode(trajectory.x.flatten(0, 1))
        s, n = trajectory.x.shape[:2]
        test = self.tasks[task].test
        chosen = torch.stack([(test.y == label).nonzero()[0, 0] for label in range(SHOWN)])
        return Recording(
            task,
            trajectory.t.cpu(),
            (trajectory.x @ self.axes.T).cpu(),
            score(self.model, weights, test.x[: self.tested], test.y[: self.tested]).accuracy.cpu().view(s, n),
            self.model.layout.unflatten(weights)[f"{self.model.layer_names[0]}.weight"][:, :, 0].cpu().unflatten(0, (s, n)),
            test.x[chosen, 0].cpu(),
            test.y[chosen].cpu(),
            self.model.forward(weights, test.x[chosen]).softmax(-1).cpu().unflatten(0, (s, n)),
            {name: (latents @ self.axes.T).cpu() for name, latents in self.latents.items()},
        )


@dataclass(frozen=True)
class Frame:
    """A figure with everything that no recording changes, and the axes that a recording is drawn on."""

    figure: Figure
    paths: Axes
    filters: Axes
    curve: Axes
    pictures: Axes
    bars: Axes

    @classmethod
    def empty(cls) -> Frame:
        """Axes, labels and the colour scale. The latent plane has no ticks: its unit means nothing, and its limits move."""
        fig = free_figure(11, 5.2)
        paths = fig.add_axes((0.055, 0.25, 0.42, 0.67))
        paths.set(xlabel="first latent axis (grey: the zoo's networks)", ylabel="second latent axis", xticks=[], yticks=[])
        scale = fig.add_axes((0.055, 0.12, 0.42, 0.03))
        fig.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), cax=scale, orientation="horizontal", label="test accuracy")
        filters = fig.add_axes((0.55, 0.79, 0.43, 0.13))
        filters.axis("off")
        filters.set_title("decoded first-layer filters", fontsize=10)
        curve = fig.add_axes((0.55, 0.52, 0.43, 0.19))
        curve.set(xlabel="flow time t", ylabel="accuracy", xlim=(-0.01, 1.01), ylim=(0, 1))
        pictures, bars = fig.add_axes((0.55, 0.21, 0.43, 0.13)), fig.add_axes((0.55, 0.06, 0.43, 0.14))
        pictures.axis("off")
        pictures.set_title("predictions on six test images (green: the right class)", fontsize=10)
        bars.set(xlim=(0, SHOWN), ylim=(0, 1))
        label_bars(bars, range(SHOWN))  # one image of each of the first classes
        return cls(fig, paths, filters, curve, pictures, bars)

    def add(self, recording: Recording, t: float, network: int) -> list[Artist]:
        """Draw the moment of a recording at the solver's stop nearest to t; returns what was added."""
        stop = recording.stop(t)
        accuracy = float(recording.accuracy[stop, network])
        title = f"{name_of(recording.task)}, network {network} at t = {recording.t[stop]:.2f}: accuracy {accuracy:.2f}"
        strip = filter_rows(self.filters, recording.filters[stop, network][None])
        self.filters.apply_aspect()  # square pixels, though the axes themselves are not painted again
        images = self.pictures.imshow(torch.cat(list(recording.images), dim=1).cpu().numpy(), cmap="gray_r", aspect="auto")
        return [
            self.figure.text(0.265, 0.945, title, ha="center", fontsize=11),
            *_paths(self.paths, recording, stop, network),
            *_accuracies(self.curve, recording, t, stop, network),
            strip,
            images,
            probability_lines(self.bars, recording.labels, recording.probabilities[stop, network]),
        ]


def _paths(ax: Axes, recording: Recording, stop: int, network: int) -> list[Artist]:
    points, color = recording.points, {"cmap": "viridis", "clim": (0, 1)}
    segments = torch.stack([points[:-1], points[1:]], dim=2).flatten(0, 1).cpu().numpy()
    lines = LineCollection(segments, array=recording.accuracy[1:].flatten().cpu().numpy(), lw=1.2, alpha=0.45, **color)
    ax.add_collection(lines, autolim=False)
    seen = torch.cat([points.flatten(0, 1), *recording.clouds.values()])
    low, high = seen.amin(0), seen.amax(0)
    margin = 0.06 * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    dots = ax.scatter(*points[stop].T.cpu().numpy(), c=recording.accuracy[stop].cpu().numpy(), s=22, zorder=3, **color)
    ring = ax.scatter(*points[stop, network].tolist(), s=170, facecolors="none", edgecolors=RED, lw=2.2, zorder=4)
    behind = [ax.scatter(*cloud.T.cpu().numpy(), s=5, color=GREY, alpha=0.5, lw=0) for cloud in recording.clouds.values()]
    names = [ax.text(*cloud.mean(0).tolist(), name_of(name), ha="center") for name, cloud in recording.clouds.items()]
    return [*behind, lines, dots, ring, *names]


def _accuracies(ax: Axes, recording: Recording, t: float, stop: int, network: int) -> list[Artist]:
    times, accuracy = recording.t.cpu().numpy(), recording.accuracy.cpu().numpy()
    ways = [np.stack([times, way], axis=1) for way in accuracy.T]
    others = ax.add_collection(LineCollection(ways, color=GREY, lw=0.8, alpha=0.4), autolim=False)
    line = ax.axvline(t, color=INK, lw=1)
    way = ax.plot(times, accuracy[:, network], color=RED, lw=2)
    now = ax.plot(times[stop], accuracy[stop, network], "o", color=RED, clip_on=False)
    return [others, line, *way, *now]


def draw(recording: Recording, t: float, network: int) -> Figure:
    """One moment of one network: its place among all trajectories, its filters, its accuracy so far, its predictions.

    The state is that of the solver's stop nearest to the flow time t.
    """
    frame = Frame.empty()
    frame.add(recording, t, network)
    return frame.figure


def trajectory_explorer(record: Callable[..., Recording], choices: Mapping[str, Sequence]) -> Panel:
    """A selector for every setting, and sliders for flow time and network.

    Args:
        record: makes a recording from the settings, given by name; a `Recorder`, or anything else that does. Every
            recording has to hold equally many networks.
        choices: what each setting can be, "task" among them; the first of each is shown first.
    """
    recorded = cache(lambda *settings: record(**dict(zip(choices, settings, strict=True))))
    frame = Frame.empty()
    backdrop = Backdrop(frame.figure)

    def image(t: float, network: int, **settings: object) -> bytes:
        return backdrop.png(frame.add(recorded(*(settings[name] for name in choices)), t, network))

    first = {name: options[0] for name, options in choices.items()}
    ready = [recorded(*(first | {"task": task}).values()) for task in choices["task"]]
    last, wide = ready[0].points.shape[1] - 1, {"width": "430px"}
    # sliders, for JupyterLab takes the vertical arrow keys that a list needs for itself
    selectors = {
        name: SelectionSlider(options=options, description=name, continuous_update=False, layout=Layout(width="280px"))
        for name, options in choices.items()
    }
    sliders = {
        "t": FloatSlider(0, min=0, max=1, step=0.05, description="flow time", continuous_update=False, layout=Layout(**wide)),
        "network": IntSlider(0, 0, last, description="network", continuous_update=False, layout=Layout(**wide)),
    }
    return Panel(image, selectors | sliders, 880, 416)
