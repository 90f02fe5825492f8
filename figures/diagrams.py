"""Diagrams of boxes and arrows: the pipeline with "you are here", and the networks that the notebooks build.

`python figures/diagrams.py` draws them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from flownlib.harness.results import save_figure
from flownlib.plots.style import BLUE, GREY, INK, ORANGE, PALE, PALETTE, bare, free_figure, use_style

HEIGHT = 0.66  # of a box, as its place in inches
TURN = "angle,angleA=90,angleB=180,rad=6"  # an arrow that goes up, then right


@dataclass(frozen=True)
class Box:
    """A text at a place [x, y] in inches, in a frame this wide; without a frame if the width is 0."""

    text: str
    x: float
    y: float = 0.0
    width: float = 1.24


@dataclass(frozen=True)
class Arrow:
    """From one box to another, with a text beside it; `way` is matplotlib's connection style."""

    start: str
    end: str
    text: str = ""
    way: str = "arc3"
    colour: str = INK


def draw(boxes: Mapping[str, Box], arrows: Sequence[Arrow], here: Sequence[str] = (), title: str = "") -> Figure:
    """The boxes by name and the arrows between them; those named in `here` are filled."""
    reach = [[box.x - box.width / 2 - 0.3, box.x + box.width / 2 + 0.3, box.y - 0.6, box.y + 0.6] for box in boxes.values()]
    left, right, low, high = (f(column) for f, column in zip((min, max, min, max), zip(*reach, strict=True), strict=True))
    high += 0.3 * bool(title)
    fig = free_figure(right - left, high - low)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(low, high))
    bare(ax)
    frames = {name: _frame(ax, box, name in here) for name, box in boxes.items()}
    for arrow in arrows:
        start, end = boxes[arrow.start], boxes[arrow.end]
        style = {
            "arrowstyle": "-|>",
            "color": arrow.colour,
            "lw": 1.4,
            "connectionstyle": arrow.way,
            "shrinkA": 2,
            "shrinkB": 2,
        }
        ends = {"patchA": frames[arrow.start], "patchB": frames[arrow.end]}
        ax.annotate("", (end.x, end.y), (start.x, start.y), arrowprops=style | ends)
        ax.text((start.x + end.x) / 2 + 0.08, (start.y + end.y) / 2, arrow.text, fontsize=9, va="center", color=arrow.colour)
    ax.text(left + 0.3, high - 0.12, title, fontsize=11, va="top", color=BLUE, weight="bold")
    return fig


def _frame(ax: Axes, box: Box, here: bool) -> FancyBboxPatch:
    width = box.width or 0.14 * max(map(len, box.text.split("\n")))
    corner = (box.x - width / 2, box.y - HEIGHT / 2)
    face, edge = (BLUE, BLUE) if here else (PALE, GREY) if box.width else ("none", "none")
    frame = FancyBboxPatch(corner, width, HEIGHT, "round,pad=0,rounding_size=0.08", facecolor=face, edgecolor=edge, lw=1.2)
    ax.add_patch(frame)
    head, _, rest = box.text.partition("\n")
    ax.text(box.x, box.y + 0.13 * bool(rest), head, ha="center", va="center", fontsize=11, color="white" if here else INK)
    ax.text(box.x, box.y - 0.14, rest, ha="center", va="center", fontsize=8.5, color="white" if here else INK)
    return frame


WAY = ("tasks", "zoo", "align", "encode", "flow", "decode", "evaluate")
STATIONS = {name: 1.62 * place for place, name in enumerate(WAY)}
MAP = {
    "tasks": Box("tasks\nimages, labels", STATIONS["tasks"]),
    "zoo": Box("zoo\ntrained networks", STATIONS["zoo"]),
    "align": Box("align\none order of units", STATIONS["align"]),
    "encode": Box("encode\nweights to latents", STATIONS["encode"]),
    "flow": Box("flow\nnoise to latents", STATIONS["flow"]),
    "decode": Box("decode\nlatents to weights", STATIONS["decode"]),
    "evaluate": Box("evaluate\nbeside baselines", STATIONS["evaluate"]),
    "context": Box("context\na few labelled images", STATIONS["flow"], 1.15, 1.5),
    "noise": Box("noise", STATIONS["flow"], -1.05, 0.7),
}
# where on the map each notebook is
HERE = {
    "00": ("the whole way, with two weights", ("zoo", "align", "flow", "evaluate")),
    "01": ("a population of networks, and its symmetries", ("tasks", "zoo", "align")),
    "02": ("networks as short vectors, and back", ("encode", "decode")),
    "03": ("from noise to networks", ("context", "flow", "evaluate")),
    "04": ("tasks that no generator has seen", ("tasks", "context", "flow")),
    "05": ("heads from one image or five a class", ("context", "flow", "evaluate")),
    "06": ("does it remember or generate?", ("evaluate",)),
    "07": ("all of it on your own checkpoints", ("zoo", "encode", "flow", "decode", "evaluate")),
}


def pipeline(notebook: str = "") -> Figure:
    """The way from tasks to generated networks; with a notebook's number, where on it the reader is."""
    title, here = HERE.get(notebook, ("", ()))
    arrows = [Arrow(start, end) for start, end in zip(WAY, WAY[1:], strict=False)]
    arrows += [Arrow("tasks", "context", way=TURN), Arrow("context", "flow"), Arrow("noise", "flow")]
    return draw(MAP, arrows, here, f"You are here: notebook {notebook}, {title}" if here else "")


def vae() -> Figure:
    """Encoder, latent, decoder, and the three losses."""
    boxes = {
        "w": Box("$w$\nweights, standardised", 0, 0, 1.6),
        "encoder": Box("encoder\ntwo hidden layers", 2.1),
        "posterior": Box(r"$\mu,\ \log\sigma^2$" + "\nof each latent", 4.0),
        "z": Box(r"$z = \mu + \sigma\,\varepsilon$" + "\nthe latent", 5.9),
        "decoder": Box("decoder\ntwo hidden layers", 7.8),
        "again": Box(r"$\hat w$" + "\nweights, rebuilt", 9.8, 0, 1.4),
        "noise": Box(r"$\varepsilon \sim N(0, 1)$", 5.9, 1.1, 0),
        "kl": Box("KL loss\nnear $N(0, 1)$?", 4.0, -1.2, 1.3),
        "weight": Box("weight loss\nthe numbers of $w$?", 9.8, -1.2, 1.5),
        "behaviour": Box("behaviour loss\nanswers to images like $w$?", 9.8, 1.2, 2.0),
    }
    chain = ["w", "encoder", "posterior", "z", "decoder", "again"]
    arrows = [Arrow(*pair) for pair in zip(chain, chain[1:], strict=False)] + [Arrow("noise", "z")]
    losses = [("posterior", "kl"), ("again", "weight"), ("again", "behaviour")]
    return draw(boxes, arrows + [Arrow(*pair, colour=ORANGE) for pair in losses], ("z",))


def velocity() -> Figure:
    """The velocity network: points pass through residual blocks, which time and context scale and shift."""
    boxes = {
        "x": Box("$x_t$\na point on the way", 0, 0, 1.4),
        "enter": Box("linear", 2.0, 0, 0.9),
        "block": Box("3 residual blocks\nnorm, scale and shift, 2 layers", 4.5, 0, 2.2),
        "leave": Box("linear", 7.0, 0, 0.9),
        "v": Box("$v(x_t, t; y)$\nthe velocity", 8.9, 0, 1.4),
        "t": Box("$t$\nthe time", 0, 1.25, 0.9),
        "waves": Box("sines and cosines\n2 layers", 2.0, 1.25, 1.5),
        "sum": Box("+\nembedding", 4.5, 1.25, 0.9),
        "read": Box("context reader\nor “none”, in a share of steps", 7.0, 1.25, 2.1),
        "y": Box("$y$\nthe context", 9.2, 1.25, 0.9),
    }
    chains = [("x", "enter", "block", "leave", "v"), ("t", "waves", "sum"), ("y", "read", "sum")]
    arrows = [Arrow(*pair) for chain in chains for pair in zip(chain, chain[1:], strict=False)]
    return draw(boxes, [*arrows, Arrow("sum", "block", "scale, shift", colour=BLUE)], ("block",))


def class_tokens() -> Figure:
    """The class-token generator: one token a class in, one row of the head a class out, and no order among them."""
    boxes = {"blocks": Box("transformer blocks\nattention among classes, no positions", 5.1, 0, 2.7)}
    boxes |= {"t": Box("$t$", 5.1, 1.2, 0), "head": Box("head\na row a class", 9.6, 0, 1.2)}
    arrows = [Arrow("t", "blocks")]
    for place, name in enumerate(("class 1", "class 2", "class $n$")):
        y = 0.95 * (1 - place)
        boxes[f"seen {name}"] = Box(f"{name}: images\nsupport features", 0, y, 1.5)
        boxes[f"token {name}"] = Box("token\nfeatures + noise", 2.35, y, 1.3)
        boxes[f"row {name}"] = Box(f"row of {name}\n$x_1$, predicted", 7.7, y, 1.3)
        arrows += [Arrow(f"seen {name}", f"token {name}"), Arrow(f"token {name}", "blocks"), Arrow("blocks", f"row {name}")]
        arrows.append(Arrow(f"row {name}", "head"))
    return draw(boxes, arrows, ("blocks",))


def graph(units: Sequence[int] = (3, 4, 2)) -> Figure:
    """A small network as a graph: a node a unit, which holds its bias, and an edge a weight; one unit's messages in colour."""
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    bare(ax)
    places = [[(1.6 * layer, 0.7 * (i - (count - 1) / 2)) for i in range(count)] for layer, count in enumerate(units)]
    chosen = places[1][1]
    for below, above in zip(places, places[1:], strict=False):
        for a in below:
            for b in above:
                mine = chosen in (a, b)
                ax.plot(*zip(a, b, strict=True), color=BLUE if mine else GREY, lw=2 if mine else 1, zorder=1)
    for colour, name, column in zip((GREY, *PALETTE[1:]), ("inputs", "hidden units", "outputs"), places, strict=False):
        colours = [BLUE if place == chosen else colour for place in column]
        ax.scatter(*zip(*column, strict=True), s=340, color=colours, edgecolor="white", lw=2, zorder=2)
        ax.text(column[0][0], 1.5, name, ha="center")
    ax.text(0.75, -1.4, "node: a unit and its bias; edge: a weight", ha="center", fontsize=9.5)
    ax.text(2.6, -1.4, "blue: what one unit hears from", ha="center", fontsize=9.5)
    ax.set(xlim=(-0.7, 3.9), ylim=(-1.6, 1.8))
    return fig


DIAGRAMS: dict[str, Callable[[], Figure]] = {
    "map.png": pipeline,
    **{f"map_{number}.png": lambda number=number: pipeline(number) for number in HERE},
    "diagram_vae.png": vae,
    "diagram_velocity.png": velocity,
    "diagram_class_tokens.png": class_tokens,
    "diagram_graph.png": graph,
}

if __name__ == "__main__":
    use_style()
    for filename, diagram in DIAGRAMS.items():
        print(save_figure(diagram(), filename, "tutorial"))
