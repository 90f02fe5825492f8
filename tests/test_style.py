"""Colours that stay apart for every reader, one look for every method, and pictures sharp enough for today's screens."""

from __future__ import annotations

import base64
import io
import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from flownlib.chapters import c00_pictures
from flownlib.harness import notebooks, results
from flownlib.plots import style

ROOT = Path(__file__).resolve().parent.parent
# Machado, Oliveira and Fernandes 2009, severity 1, of linear RGB
VISION = {
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def lab(colour: str, seen: np.ndarray = VISION["normal"]) -> np.ndarray:
    """CIELAB of a colour "#rrggbb" as a vision sees it, under D65."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(seen @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """CIEDE2000 of two colours in CIELAB (Sharma, Wu and Dalal 2005)."""
    sin, cos = (lambda degrees, f=f: f(np.radians(degrees)) for f in (np.sin, np.cos))
    mean_chroma = (np.hypot(*first[1:]) + np.hypot(*second[1:])) / 2
    stretch = 1 + 0.5 * (1 - np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25**7)))
    (l1, a1, b1), (l2, a2, b2) = first * [1, stretch, 1], second * [1, stretch, 1]
    c1, c2, h1, h2 = np.hypot(a1, b1), np.hypot(a2, b2), np.degrees(np.arctan2(b1, a1)), np.degrees(np.arctan2(b2, a2))
    turn = (h2 - h1 + 180) % 360 - 180
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, h1 + turn / 2
    t = 1 - 0.17 * cos(hue - 30) + 0.24 * cos(2 * hue) + 0.32 * cos(3 * hue + 6) - 0.2 * cos(4 * hue - 63)
    s_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * sin(60 * np.exp(-(((hue % 360 - 275) / 25) ** 2)))
    d_l, d_c, d_h = (l2 - l1) / s_l, (c2 - c1) / s_c, 2 * np.sqrt(c1 * c2) * sin(turn / 2) / s_h
    return float(np.sqrt(d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h))


def closest(colours: list[str], seen: np.ndarray) -> float:
    """The least difference between two of these colours as a vision sees them."""
    return min(difference(a, b) for a, b in itertools.combinations([lab(colour, seen) for colour in colours], 2))


def test_the_difference_is_that_of_the_published_examples() -> None:
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ]
    for first, second, published in pairs:
        assert difference(np.array(first), np.array(second)) == pytest.approx(published, abs=2e-4)


@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_that_meet_in_a_figure_can_be_told_apart(vision: str) -> None:
    """All of the palette, for any two may meet; and steps of an order, from which a neighbour is the nearest."""
    assert closest([*style.PALETTE, style.INK, style.GREY], VISION[vision]) >= 15
    assert all(closest(style.ordered(n), VISION[vision]) >= 15 for n in (2, 3, 4))


@pytest.mark.parametrize("vision", VISION)
def test_every_colour_can_be_seen_on_the_ground(vision: str) -> None:
    for ground in ("#ffffff", style.PALE):
        for colour in [*style.PALETTE, style.INK, style.GREY, *style.ordered(5)]:
            assert closest([colour, ground], VISION[vision]) >= 15, colour


def test_two_similar_colours_would_be_found() -> None:
    """Blue and purple, orange and green, as they were once."""
    assert closest(["#4c72b0", "#8172b3"], VISION["deutan"]) < 15 and closest(["#dd8452", "#55a868"], VISION["protan"]) < 15


def test_a_method_has_one_colour_and_no_two_share_colour_and_marker() -> None:
    known = list(style.METHODS)
    assert len({(style.colour_of(method), style.marker_of(method)) for method in known}) == len(known)
    assert style.colour_of("gaussian_diagonal") == style.colour_of("gaussian") and style.marker_of("unknown") == "o"


def test_colours_are_written_down_in_one_place() -> None:
    """But for the ground of notebook 00, which is nearly white."""
    files = [path for path in ROOT.glob("flownlib/**/*.py") if path.stem not in ("style", "c00_pictures")]
    texts = {path.name: path.read_text() for path in [*files, *ROOT.glob("notebooks/**/*.ipynb")]}
    assert not [name for name, text in texts.items() if re.search(r"[\"']#[0-9a-fA-F]{6}\b[\"'\\]", text)]
    assert all(closest([chord, style.INK], VISION[v]) >= 15 for chord in c00_pictures.COLOURS.values() for v in VISION)


def test_a_saved_figure_has_two_pixels_for_each_that_is_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    with PIL.Image.open(results.save_figure(figure, "x.png", "smoke")) as picture:
        assert picture.width > 250 and picture.height > 100


@pytest.mark.parametrize("path", notebooks.available(), ids=lambda path: path.stem)
def test_the_pictures_in_a_notebook_are_shown_at_half_their_size(path: Path) -> None:
    outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
    for output in (out for out in outputs if "image/png" in out.get("data", {})):
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        assert output.metadata["image/png"]["width"] * 2 <= picture.width + 1
