"""A figure that follows sliders: drawn by a pure function, shown as an image."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
from ipywidgets import HTML, HBox, Image, ValueWidget, VBox
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The figure as an image, after which it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


class Panel:
    """A figure that follows its controls. It is shown as an image, which a notebook that runs headlessly can display too.

    Args:
        draw: makes the figure from the controls' values, given by name. width, height: of the image, in pixels.

    `controls` holds the widgets by name, so that a test can move them without a browser.
    """

    def __init__(self, draw: Callable[..., Figure], controls: dict[str, ValueWidget], width: int, height: int) -> None:
        self.draw, self.controls = draw, controls
        self.image = Image(format="png", width=width, height=height)
        for control in controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        self.image.value = png(self.draw(**{name: control.value for name, control in self.controls.items()}))

    def show(self) -> VBox:
        """The panel as one widget."""
        return VBox([HTML("Use the sliders, or the arrow keys."), HBox(list(self.controls.values())), self.image])
