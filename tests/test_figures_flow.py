"""Notebook 03's figures show what they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from flownlib.flow import PATHS
from flownlib.plots import flow as figures_flow


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(quantity, method, value, **setting):
    return {"quantity": quantity, "method": method, "setting": setting, "value": value, "low": value - 0.1, "high": value + 0.1}


def test_two_dimensions_draws_every_pair_and_every_way():
    x_0, x_1 = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    fig = figures_flow.two_dimensions(x_0, x_1, [0] * 7, torch.randn(5, 7, 2), [1] * 7)
    lines = [collection for ax in fig.axes for collection in ax.collections if hasattr(collection, "get_segments")]
    assert [len(part.get_segments()) for part in lines] == [7, 7]
    assert [len(part.get_segments()[0]) for part in lines] == [2, 5]


def test_path_shapes_show_that_only_the_turned_path_keeps_its_length():
    x_0, x_1 = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    fig = figures_flow.path_shapes({name: PATHS[name]() for name in ("straight", "variance_preserving")}, x_0, x_1)
    straight, turned = (line.get_ydata() for line in fig.axes[-1].lines)
    assert straight.min() == pytest.approx(0.5**0.5, abs=0.02) and turned.min() > 0.97


def test_choices_place_one_dot_for_each_method_and_number_of_steps():
    records = [record("spread", method, 0.5, steps=steps) for method in ("a", "b") for steps in (1, 4, 16)]
    fig = figures_flow.choices(records, (1, 4), {"a": "first", "b": "second"}, {"spread": "spread"})
    (ax,) = fig.axes
    assert len(ax.collections) == 4 and [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]


def test_method_study_shows_one_kind_of_zoo_only():
    records = [record("spread", "zoo_held_out", 1.0, zoo=kind) for kind in ("shared", "independent")]
    records += [record("spread", "latent_flow", 0.1, zoo="shared")]
    fig = figures_flow.method_study(records, "independent", {"spread": 1.0, "offset": None}, ["zoo_held_out", "latent_flow"])
    assert [len(ax.collections) for ax in fig.axes] == [1, 0]


def test_dispersion_shows_the_loss_and_what_was_seen():
    fig = figures_flow.dispersion([1.0, 0.5, 0.4, 0.3], [(2, 0.9), (4, 0.7)])
    assert list(fig.axes[1].lines[0].get_ydata()) == [0.9, 0.7]
