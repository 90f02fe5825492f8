"""The zoo browser: two networks side by side, what they see, where they err, and the way from one to the other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import matplotlib.pyplot as plt
import torch
from ipywidgets import IntSlider
from matplotlib.figure import Figure
from torch import Tensor

from flownlib.networks import Classifier
from flownlib.plots.panel import Panel
from flownlib.plots.style import BLUE, GREY, INK, VIOLET, filter_rows, free_figure
from flownlib.scoring import Split, logits_of

SHOWN = 8  # wrong images of each network


@dataclass(frozen=True)
class Browsing:
    """Everything that can be shown of n networks, by "raw" or "aligned" where that matters.

    predicted int64 [n, images]; filters [n, f, k, k]; lines [n, n, stops], the accuracy from network a to network b;
    `classes` names each class by a character.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    filters: dict[str, Tensor]
    lines: dict[str, Tensor]
    classes: str

    def accuracy(self, network: int) -> float:
        """Share of the images that a network gets right."""
        return (self.predicted[network] == self.labels).float().mean().item()

    def common_errors(self, a: int, b: int) -> float:
        """Errors that both make, as a share of those that either makes (intersection over union)."""
        wrong = self.predicted != self.labels
        return ((wrong[a] & wrong[b]).sum() / (wrong[a] | wrong[b]).sum().clamp(min=1)).item()


def line(a: Tensor, b: Tensor, stops: int) -> Tensor:
    """Networks [stops, p] from a to b: (1 - s) a + s b."""
    share = torch.linspace(0, 1, stops, dtype=a.dtype)[:, None]
    return (1 - share) * a + share * b


def browse(model: Classifier, raw: Tensor, aligned: Tensor, split: Split, classes: str, stops: int = 11) -> Browsing:
    """Evaluate the networks [n, p], the same networks aligned, and the lines between all pairs of either."""
    pairs = list(combinations(range(len(raw)), 2))
    predicted = logits_of(model, raw, split.x).argmax(-1)
    diagonal = (predicted == split.y).float().mean(1)
    lines = {}
    for name, weights in {"raw": raw, "aligned": aligned}.items():
        points = torch.cat([line(weights[a], weights[b], stops) for a, b in pairs])
        found = (logits_of(model, points, split.x).argmax(-1) == split.y).float().mean(1).view(len(pairs), stops)
        table = diagonal[:, None, None].repeat(1, len(raw), stops)
        for (a, b), accuracy in zip(pairs, found, strict=True):
            table[a, b], table[b, a] = accuracy, accuracy.flip(0)
        lines[name] = table
    first = f"{model.layer_names[0]}.weight"
    filters = {name: model.layout.unflatten(w)[first][:, :, 0] for name, w in {"raw": raw, "aligned": aligned}.items()}
    return Browsing(split.x[:, 0], split.y, predicted, filters, lines, classes)


def draw(browsing: Browsing, first: int, second: int) -> Figure:
    """Two networks: their filters raw and aligned, their errors, and the accuracy along the line between them."""
    fig = free_figure(11, 5.6)
    for place, kind in zip((0.72, 0.45), browsing.filters, strict=True):
        _draw_filters(fig.add_axes((0.09, place, 0.48, 0.2)), browsing, kind, (first, second))
    for place, network in zip((0.225, 0.03), (first, second), strict=True):
        _draw_errors(fig.add_axes((0.09, place, 0.48, 0.11)), browsing, network)
    _draw_line(fig.add_axes((0.665, 0.11, 0.325, 0.76)), browsing, first, second)
    return fig


def _draw_filters(ax: plt.Axes, browsing: Browsing, kind: str, networks: tuple[int, int]) -> None:
    filters = browsing.filters[kind][list(networks)]
    names = tuple(f"network {network}" for network in networks)
    filter_rows(ax, filters / filters.abs().amax((1, 2, 3), keepdim=True), names).axes.set_aspect("auto")
    ax.set_title(f"first-layer filters, {kind} (red +, blue −, each network's largest weight = 1)", fontsize=10)


def _draw_errors(ax: plt.Axes, browsing: Browsing, network: int) -> None:
    wrong = (browsing.predicted[network] != browsing.labels).nonzero()[:SHOWN, 0]
    ax.axis("off")
    ax.set_title(f"network {network}: some errors, answer (truth)", fontsize=10, pad=19)
    if not len(wrong):
        return
    strip = torch.cat(list(browsing.images[wrong]), dim=1)
    ax.imshow(strip.numpy(), cmap=plt.get_cmap("gray_r", 8), interpolation="nearest", aspect="auto")
    width = browsing.images.shape[-1]
    ax.set_xlim(0, SHOWN * width)
    for i, image in enumerate(wrong.tolist()):
        answer, right = (browsing.classes[int(label[image])] for label in (browsing.predicted[network], browsing.labels))
        ax.text((i + 0.5) * width, -1, f"{answer} ({right})", ha="center", va="bottom", fontsize=11, color=INK)


def _draw_line(ax: plt.Axes, browsing: Browsing, first: int, second: int) -> None:
    stops = browsing.lines["raw"].shape[-1]
    share = torch.linspace(0, 1, stops).numpy()
    for color, (kind, lines) in zip((BLUE, VIOLET), browsing.lines.items(), strict=True):
        curve = lines[first, second]
        ax.plot(share, curve.numpy(), color=color, lw=2.2, marker="o", ms=4)
        middle = curve[stops // 2].item()
        ax.annotate(f"{kind}: {middle:.2f}", (0.5, middle - 0.025), color=color, ha="center", va="top", fontsize=11)
    chance = 1 / len(browsing.classes)
    ax.axhline(chance, color=GREY, lw=1, ls="--")
    ax.annotate("a guess", (0, chance - 0.015), color=INK, va="top", fontsize=10)
    ax.set_title(
        f"networks {first} ({browsing.accuracy(first):.3f}) and {second} ({browsing.accuracy(second):.3f}),\n"
        f"{browsing.common_errors(first, second):.0%} of their errors in common",
        fontsize=11,
    )
    ax.set(xlabel=f"share of network {second}", ylabel="test accuracy", ylim=(0, 1.05), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])


def zoo_browser(browsing: Browsing) -> Panel:
    """Two sliders, one for each network."""
    last = len(browsing.predicted) - 1
    controls = {
        "first": IntSlider(0, 0, last, description="first", continuous_update=False),
        "second": IntSlider(min(1, last), 0, last, description="second", continuous_update=False),
    }
    return Panel(lambda first, second: draw(browsing, first, second), controls, width=880, height=448)
