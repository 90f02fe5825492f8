"""The trajectory explorer: networks on their way from noise, recorded beforehand, so that the sliders only choose what is drawn.

What is computed when: `trajectory_explorer` records the first combination of settings for every task before it is shown; any
other combination is recorded when it is first chosen (16 networks and 100 images keep that within a redraw's time) and kept.
The flow-time and network sliders compute nothing: they paint a few marks on a picture of the recording painted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from ipywidgets import Dropdown, FloatSlider, IntSlider, Layout
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.classifiers import Classifier
from flownlib.figures import GREY, INK, PALETTE, filter_strip, free_figure, prediction_bars, probability_lines
from flownlib.generators import FlowGenerator
from flownlib.panel import Backdrop, Panel
from flownlib.scoring import score
from flownlib.tasks import Task

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
    """

    generator: FlowGenerator
    tasks: Mapping[str, Task]
    contexts: Mapping[str, Tensor]
    priors: Mapping[str, Prior]
    axes: Tensor
    model: Classifier
    networks: int = 16
    tested: int = 100
    seed: int = 0

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
            trajectory.t,
            trajectory.x @ self.axes.T,
            score(self.model, weights, test.x[: self.tested], test.y[: self.tested]).accuracy.view(s, n),
            self.model.layout.views(weights)[f"{self.model.layer_names[0]}.weight"][:, :, 0].unflatten(0, (s, n)),
            test.x[chosen, 0],
            test.y[chosen],
            self.model.forward(weights, test.x[chosen]).softmax(-1).unflatten(0, (s, n)),
        )


@dataclass(frozen=True)
class Scene:
    """The figure of a recording without the marks of a moment, and the axes that they go on."""

    recording: Recording
    figure: Figure
    paths: Axes
    filters: Axes
    curve: Axes
    bars: Axes

    @classmethod
    def of(cls, recording: Recording) -> Scene:
        """All trajectories, all accuracies and the images."""
        fig = free_figure(11, 5.2)
        paths = fig.add_axes((0.075, 0.27, 0.385, 0.67))
        _draw_paths(fig, paths, recording)
        filters = fig.add_axes((0.55, 0.79, 0.43, 0.13))
        filter_strip(filters, recording.filters[0, 0]).remove()
        curve = fig.add_axes((0.55, 0.50, 0.43, 0.20))
        curve.plot(recording.t.numpy(), recording.accuracy.numpy(), color=GREY, lw=0.8, alpha=0.4)
        curve.set(xlabel="flow time t", ylabel="accuracy", xlim=(-0.01, 1.01), ylim=(0, 1))
        pictures, bars = fig.add_axes((0.55, 0.19, 0.43, 0.13)), fig.add_axes((0.55, 0.02, 0.43, 0.16))
        prediction_bars(pictures, bars, recording.images, recording.labels, recording.probabilities[0, 0]).remove()
        pictures.set_title("predictions on six test images (green: the right class)", fontsize=10)
        return cls(recording, fig, paths, filters, curve, bars)

    def mark(self, t: float, network: int) -> list[Artist]:
        """Add what belongs to one moment of one network, and return it."""
        recording = self.recording
        stop = recording.stop(t)
        here, accuracy = recording.points[stop], recording.accuracy[stop]
        settings = {"cmap": "viridis", "vmin": 0, "vmax": 1, "zorder": 3}
        dots = self.paths.scatter(*here.T.numpy(), c=accuracy.numpy(), s=22, **settings)
        ring = self.paths.scatter(*here[network].tolist(), s=170, facecolors="none", edgecolors=PALETTE[1], lw=2.2, zorder=4)
        title = f"{recording.task}, network {network} at t = {recording.t[stop]:.2f}: accuracy {accuracy[network]:.2f}"
        text = self.figure.text(0.2675, 0.96, title, ha="center", fontsize=11)
        way = self.curve.plot(recording.t.numpy(), recording.accuracy[:, network].numpy(), color=PALETTE[1], lw=2)
        now = self.curve.plot(float(recording.t[stop]), float(accuracy[network]), "o", color=PALETTE[1], clip_on=False)
        line = self.curve.axvline(t, color=INK, lw=1)
        strip = filter_strip(self.filters, recording.filters[stop, network])
        bars = probability_lines(self.bars, recording.labels, recording.probabilities[stop, network])
        return [dots, ring, text, *way, *now, line, strip, bars]


def draw(recording: Recording, t: float, network: int) -> Figure:
    """One moment of one network: its place among all trajectories, its filters, its accuracy so far, its predictions.

    The state is that of the solver's stop nearest to the flow time t.
    """
    scene = Scene.of(recording)
    scene.mark(t, network)
    return scene.figure


def _draw_paths(fig: Figure, ax: Axes, recording: Recording) -> None:
    points = recording.points
    segments = torch.stack([points[:-1], points[1:]], dim=2).flatten(0, 1).numpy()
    lines = LineCollection(segments, cmap="viridis", lw=1.2, alpha=0.45, clim=(0, 1))
    lines.set_array(recording.accuracy[1:].flatten().numpy())
    ax.add_collection(lines)
    low, high = points.amin((0, 1)), points.amax((0, 1))
    margin = 0.06 * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    ax.set(xlabel="first latent axis", ylabel="second latent axis", xlim=(left, right), ylim=(bottom, top))
    bar = fig.colorbar(lines, cax=fig.add_axes((0.075, 0.11, 0.385, 0.03)), orientation="horizontal", label="test accuracy")
    bar.solids.set_alpha(1)


def trajectory_explorer(record: Callable[..., Recording], choices: Mapping[str, Sequence]) -> Panel:
    """A selector for every setting, and sliders for flow time and network.

    Args:
        record: makes a recording from the settings, given by name; a `Recorder`, or anything else that does.
        choices: what each setting can be, "task" among them; the first of each is shown first.
    """
    recorded = cache(lambda *settings: record(**dict(zip(choices, settings, strict=True))))

    @lru_cache(maxsize=16)  # a scene and its picture take a few megabytes
    def staged(*settings: object) -> tuple[Scene, Backdrop]:
        scene = Scene.of(recorded(*settings))
        return scene, Backdrop(scene.figure)

    def image(t: float, network: int, **settings: object) -> bytes:
        scene, backdrop = staged(*(settings[name] for name in choices))
        return backdrop.png(scene.mark(t, network))

    first = {name: options[0] for name, options in choices.items()}
    networks = [recorded(*(first | {"task": task}).values()).points.shape[1] for task in choices["task"]]
    narrow, wide = {"width": "215px"}, {"width": "430px"}
    controls = {
        "t": FloatSlider(0, min=0, max=1, step=0.05, description="flow time", continuous_update=False, layout=Layout(**wide)),
        "network": IntSlider(
            0, 0, min(networks) - 1, description="network", continuous_update=False, layout=Layout(**wide)
        ),
    }
    selectors = {name: Dropdown(options=options, description=name, layout=Layout(**narrow)) for name, options in choices.items()}
    return Panel(image, selectors | controls, 880, 416)
