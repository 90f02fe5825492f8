"""The charts that notebooks share, their palette, and notebook 03's figures show what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.quiver import Quiver

from flownlib.flow import PATHS
from flownlib.plots import charts, style
from flownlib.plots import flow as figures_flow


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(quantity, method, value, **setting):
    return {"quantity": quantity, "method": method, "setting": setting, "value": value, "low": value - 0.1, "high": value + 0.1}


def test_two_dimensions_draws_every_pair_every_arrow_and_every_way():
    x_0, x_1, places, arrows = torch.randn(4, 7, 2, generator=torch.Generator().manual_seed(0))
    free, asked = torch.randn(5, 7, 2), torch.randn(5, 3, 2)
    pairs = x_0, x_1, ["latin"] * 4 + ["greek"] * 3
    fig = figures_flow.two_dimensions(pairs, free, (places, arrows), asked, "asked for greek")
    lines = [collection for ax in fig.axes for collection in ax.collections if isinstance(collection, LineCollection)]
    assert [len(part.get_segments()) for part in lines] == [7, 7, 3]
    assert [len(part.get_segments()[0]) for part in lines] == [2, 5, 5]
    (field,) = [part for part in fig.axes[1].collections if isinstance(part, Quiver)]
    assert field.U.tolist() == pytest.approx(arrows[:, 0].tolist())


def test_path_shapes_show_that_only_the_turned_path_keeps_its_length():
    x_0, x_1 = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    fig = figures_flow.path_shapes({name: PATHS[name]() for name in ("straight", "variance_preserving")}, x_0, x_1)
    straight, turned = (line.get_ydata() for line in fig.axes[-1].lines)
    assert straight.min() == pytest.approx(0.5**0.5, abs=0.02) and turned.min() > 0.97


def dots(ax):
    """The large dots of a comparison, [n, 2], in the order of its rows."""
    marks = [part for part in ax.collections if isinstance(part, PathCollection) and part.get_sizes()[0] == 30]
    return sorted(tuple(point) for part in marks for point in part.get_offsets().tolist())


def test_comparison_places_a_dot_for_each_row_and_series_and_an_interval_through_it():
    records = [record("spread", method, 0.5, steps=steps) for method in ("a", "b") for steps in (1, 4, 16)]
    panels, series = {"spread": charts.MEASURES["spread"]}, {1: "1 step", 4: "4 steps"}
    fig = charts.comparison(charts.frame(records), panels, {"a": "first", "b": "second"}, series=series)
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert [y for _, y in dots(ax)] == pytest.approx([-0.175, 0.175, 0.825, 1.175])
    intervals = [line for part in ax.collections if isinstance(part, LineCollection) for line in part.get_segments()]
    assert len(intervals) == 4 and intervals[0][:, 0].tolist() == pytest.approx([0.4, 0.6])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["1 step", "4 steps"]


def test_comparison_summarises_raw_values_and_gives_a_method_its_name_and_colour():
    values = {"zoo_held_out": (0.9, 0.9, 0.9), "latent_flow": (0.2, 0.4, 0.6)}
    table = pd.DataFrame([{"method": m, "quantity": "spread", "value": v} for m in values for v in values[m]])
    (ax,) = charts.comparison(table, {"spread": charts.MEASURES["spread"]}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["held-out networks", "latent flow"]
    assert dots(ax) == [pytest.approx((0.4, 1)), pytest.approx((0.9, 0))]
    marks = [part for part in ax.collections if isinstance(part, PathCollection)][-1]
    assert [to_hex(colour) for colour in marks.get_facecolor()] == [style.INK, style.BLUE]


def test_comparison_points_at_what_lies_outside():
    table = pd.DataFrame([record("spread", "a", 60.0), record("spread", "b", 1.0)])
    (ax,) = charts.comparison(table, {"spread": charts.MEASURES["spread"]}).axes
    assert ax.get_xlim()[1] == 1.5 and ax.collections[-1].get_offsets().tolist() == [[1.5, 0.0]]


def test_methods_of_a_family_share_its_colour_and_are_called_by_words():
    assert style.name_of("noise_0.1") == "noise 0.1" and style.colour_of("noise_0.1") == style.ORANGE
    assert style.name_of("latent_flow_1_step") == "latent flow 1 step" and style.colour_of("pca_flow_2") == style.BLUE
    assert style.name_of("old_italic") == "old italic" and style.colour_of("pca") == style.SKY


def lab(colours):
    """CIELAB of linear RGB [n, 3] under D65."""
    xyz = colours @ np.array([[0.4125, 0.2127, 0.0193], [0.3576, 0.7152, 0.1192], [0.1804, 0.0722, 0.9503]])
    f = xyz / [0.9505, 1, 1.0891]
    f = np.where(f > (6 / 29) ** 3, np.cbrt(f), f / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


# how a dichromat sees linear RGB: Machado, Oliveira and Fernandes 2009, at full severity
VISION = {
    "normal": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_of_the_palette_can_be_told_apart(vision):
    srgb = np.array([to_rgb(colour) for colour in (style.INK, style.GREY, *style.PALETTE)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.array(VISION[vision]).T, 0, 1))
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(len(seen), 1)]
    assert distances.min() > 19  # CIE76; 2.3 can just be noticed


def test_dispersion_shows_the_loss_and_what_was_seen():
    fig = figures_flow.dispersion([1.0, 0.5, 0.4, 0.3], [(2, 0.9), (4, 0.7)])
    assert list(fig.axes[1].lines[0].get_ydata()) == [0.9, 0.7]
    assert fig.axes[0].get_ylim()[0] == 0


def test_variety_draws_a_line_a_method_and_no_label_on_another():
    (ax,) = figures_flow.variety({"latent_flow": (0.7, 0.03), "zoo_held_out": (1.0, 0.04), "hypernetwork": (0.0, 0.0)}).axes
    assert [list(line.get_ydata()) for line in ax.lines[:3]] == [[0.0, 0.0], [0.7, 0.03], [1.0, 0.04]]
    right = sorted(text.get_position()[1] for text in ax.texts if text.get_text() in ("0.000", "0.030", "0.040"))
    assert len(right) == 3 and min(np.diff(right)) > 0.06


def test_steps_of_a_solver_get_a_sequential_map():
    records = [record("spread", "a", 0.5, steps=steps) for steps in (1, 4, 16)]
    fig = charts.comparison(charts.frame(records), {"spread": charts.MEASURES["spread"]}, series={1: "1", 4: "4", 16: "16"})
    marks = [part.get_facecolor()[0, :3] for part in fig.axes[0].collections if isinstance(part, PathCollection)]
    light = [float(colour.mean()) for colour in marks]
    assert len(light) == 3 and light == sorted(light, reverse=True)
