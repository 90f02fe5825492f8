"""A figure that follows its controls: drawn by a pure function, shown as an image."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import HTML, Box, Image, Layout, ValueWidget, VBox
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Picture

DPI = 80


class Backdrop:
    """The still part of a figure, painted once; what moves is painted over it.

    The axes' limits have to be fixed by then, for what moves is placed by them.
    """

    def __init__(self, figure: Figure) -> None:
        plt.close(figure)  # or a notebook would show it too
        figure.set_dpi(DPI)
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()
        self.painted = self.canvas.copy_from_bbox(figure.bbox)

    def png(self, moving: Iterable[Artist] = ()) -> bytes:
        """The backdrop with the figure's artists `moving` on it, which are taken off the figure afterwards."""
        self.canvas.restore_region(self.painted)
        for artist in sorted(moving, key=Artist.get_zorder):
            artist.draw(self.canvas.get_renderer())
            artist.remove()
        buffer = io.BytesIO()
        # the lowest compression takes a tenth of the time of the usual one and makes a file a quarter larger
        Picture.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB").save(buffer, "png", compress_level=1)
        return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as an image, after which it is closed."""
    return Backdrop(figure).png()


class Panel:
    """A figure that follows its controls. It is shown as an image, which a notebook that runs headlessly can display too.

    Args:
        draw: makes the figure, or its image as PNG, from the controls' values, given by name.
        width, height: of the image, in pixels.

    `controls` holds the widgets by name, so that a test can move them without a browser.
    """

    def __init__(self, draw: Callable[..., Figure | bytes], controls: dict[str, ValueWidget], width: int, height: int) -> None:
        self.draw, self.controls = draw, controls
        self.image = Image(format="png", width=width, height=height)
        for control in controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        drawn = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.image.value = drawn if isinstance(drawn, bytes) else png(drawn)

    def show(self) -> VBox:
        """The panel as one widget."""
        controls = Box(list(self.controls.values()), layout=Layout(flex_flow="row wrap", width=f"{self.image.width}px"))
        hint = HTML("The tab key goes from control to control, the arrow keys move it.")
        return VBox([hint, controls, self.image])
