"""The zoo browser, notebook 01's figures, and the benchmark command."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from flownlib.benchmarks.__main__ import main
from flownlib.benchmarks.training import operations_per_step
from flownlib.harness import results
from flownlib.networks import cnn_medium, cnn_small, mlp
from flownlib.plots import zoo as figures_zoo
from flownlib.plots import zoo_browser
from flownlib.scoring import Split, score


@pytest.fixture(scope="module")
def browsing(canonical, tasks):
    name = canonical.train.tasks[0]
    some = Split(tasks[name].test.x[:60], tasks[name].test.y[:60])
    weights = canonical.train.task(name).weights[:4]
    return zoo_browser.browse(canonical.train.model, weights, weights.flip(0), some, "ABCDEFGHIJ", stops=5), weights, some


def test_lines_begin_and_end_at_their_networks_and_can_be_walked_back(browsing):
    found, weights, some = browsing
    ends = score(cnn_small(), weights, some.x, some.y).accuracy
    for a in range(4):
        for b in range(4):
            line = found.lines["raw"][a, b]
            assert line[0].item() == pytest.approx(ends[a].item(), abs=0.02) and line[-1].item() == pytest.approx(
                ends[b].item(), abs=0.02
            )
            assert torch.equal(line.flip(0), found.lines["raw"][b, a])
    middle = score(cnn_small(), (weights[:1] + weights[1:2]) / 2, some.x, some.y).accuracy
    assert found.lines["raw"][0, 1, 2].item() == pytest.approx(middle.item(), abs=0.02)


def test_errors_are_counted_once(browsing):
    found, weights, some = browsing
    wrong = score(cnn_small(), weights[:2], some.x, some.y).wrong
    expected = (wrong[0] & wrong[1]).sum() / (wrong[0] | wrong[1]).sum()
    assert found.common_errors(0, 1) == pytest.approx(expected.item(), abs=0.02) and found.common_errors(2, 2) == 1
    assert found.accuracy(0) == pytest.approx(1 - wrong[0].float().mean().item(), abs=0.02)


def test_the_browser_follows_its_sliders(browsing):
    panel = zoo_browser.zoo_browser(browsing[0])
    before = panel.image.value
    panel.controls["second"].value = 3
    assert panel.image.value != before and bytes(panel.image.value).startswith(b"\x89PNG")
    assert not plt.get_fignums() or plt.close("all") is None


def test_a_network_without_errors_can_be_shown(browsing):
    found = browsing[0]
    perfect = zoo_browser.Browsing(
        found.images, found.labels, found.labels.expand(4, -1), found.filters, found.lines, found.classes
    )  # fmt: skip
    fig = zoo_browser.draw(perfect, 0, 1)
    assert "(1.000)" in fig.axes[-1].get_title()
    plt.close(fig)


def test_an_error_is_named_by_its_characters(browsing):
    found = browsing[0]
    fig = zoo_browser.draw(found, 0, 1)
    wrong = (found.predicted[0] != found.labels).nonzero()[:3, 0].tolist()
    expected = [f"{found.classes[found.predicted[0, i]]} ({found.classes[found.labels[i]]})" for i in wrong]
    assert wrong and [text.get_text() for text in fig.axes[2].texts][: len(wrong)] == expected
    plt.close(fig)


def test_figures_draw_what_they_are_given():
    points = torch.randn(3, 4, 2)
    fig = figures_zoo.training_paths({"a": (points, torch.rand(3, 4)), "b": (points, torch.rand(3, 4))}, (0.5, 0.25))
    assert [ax.get_title() for ax in fig.axes[:2]] == ["a", "b"] and len(fig.axes[0].collections) == 6
    assert "25%" in fig.axes[0].get_ylabel()
    fig = figures_zoo.what_changes({"x": (torch.rand(5), torch.rand(5))}, by_chance=0.9)
    assert "x" in [text.get_text() for text in fig.axes[0].texts]
    table = pd.DataFrame({"task": ["a", "a", "b_c"], "test_accuracy": [0.5, 0.7, 0.9]})
    fig = figures_zoo.accuracy_by_task(table, {"first": ["a"], "second": ["b_c"]})
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["a", "b c"]
    plt.close("all")


def test_counted_operations_are_those_of_the_textbook():
    # products of a forward pass are k² c_in c_out h w; the first layer needs no gradient of its input
    first, second, third, dense = 25 * 8 * 144, 200 * 6 * 16, 24 * 4 * 9, 720 + 200
    assert operations_per_step(cnn_small(), 1) == 2 * (2 * first + 3 * (second + third + dense))
    assert operations_per_step(mlp(), 1) == 2 * (2 * 784 * 32 + 3 * 320)
    assert operations_per_step(cnn_medium(), 2) == 2 * operations_per_step(cnn_medium(), 1)


def test_the_benchmark_measures_every_way(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    assert main(["zoo", "--rounds", "2", "--networks", "4"]) == 0
    printed, stored = capsys.readouterr().out, results.read("benchmark_zoo_cpu", tmp_path / "results")["records"]
    assert "model_steps_per_second of vmap" in printed and "networks_per_second of torch" in printed
    rates = {r["method"] for r in stored if r["quantity"] == "model_steps_per_second"}
    assert {"loop", "vmap", "torch"} <= rates and all(r["setting"]["device"] for r in stored)
    assert main(["zoo", "--classifier", "abacus"]) == 2
    assert "there is no classifier 'abacus'" in capsys.readouterr().err
