"""The open problem: activation matching, further training, the criteria and the margin over the nulls."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.collections import PathCollection

from flownlib.baselines import Gaussian, Retrieval
from flownlib.chapters import shared as recipes
from flownlib.chapters.c06_frontier import Rescaled, further_trained
from flownlib.encoders import WeightSpace
from flownlib.extensions.activations import (
    ActivationMatched,
    join_matrices,
    layer_matrices,
    nearest_solution,
    pre_activations,
    solve_layers,
)
from flownlib.extensions.frontier import Point, criteria, margin
from flownlib.networks import classifier
from flownlib.optimisation import seeded
from flownlib.plots import charts
from flownlib.plots import frontier as figures_frontier
from flownlib.scoring import score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders


@pytest.fixture(scope="module")
def contexts(tasks):
    return recipes.support_contexts(recipes.image_features(tasks), tasks, 2, 4, 0)


@pytest.mark.parametrize("name", ["cnn_small", "cnn_small_pool", "cnn_embed", "cnn_medium", "mlp_1x28x28_9_7_10"])
def test_pre_activations_are_those_of_the_network(name):
    model = classifier(name)
    weights = model.initialise(3, seeded(0), torch.float64)
    x = torch.randn(5, *model.image_shape, dtype=torch.float64, generator=seeded(1))
    found = pre_activations(model, weights, x)
    assert torch.allclose(found[-1], model.forward(weights, x))
    assert torch.allclose(F.relu(found[-2]).flatten(1).sum(1), model.features(weights, x).flatten(1).sum(1))
    assert torch.equal(join_matrices(layer_matrices(model, weights)), weights)


def test_the_nearest_solution_minimises_what_it_says():
    generator = seeded(0)
    inputs, targets, matrix, scale = (
        torch.rand(size, generator=generator, dtype=torch.float64) + 0.1 for size in ((1, 30, 4), (1, 30, 2), (1, 2, 4), (4,))
    )

    def price(w):
        miss = (inputs @ w.transpose(1, 2) - targets).square().sum() / 30 / targets.var(dim=1).mean()
        return miss + 0.3 * ((w - matrix) / scale).square().sum()

    found = nearest_solution(inputs, targets, matrix, scale, 0.3).requires_grad_()
    (gradient,) = torch.autograd.grad(price(found), found)
    assert gradient.abs().max() < 1e-10
    assert torch.allclose(nearest_solution(inputs, targets, matrix, scale, 1e9), matrix, atol=1e-6)


def test_a_network_with_its_own_activations_as_targets_stays_as_it_is(canonical, tasks):
    model, x = canonical.train.model, next(iter(tasks.values())).train.x[:40].double()
    weights = canonical.train.weights[:3].double()
    targets = pre_activations(model, weights, x)[1:]
    scale = WeightSpace.fit(canonical.train).standardiser.scale.double()
    assert torch.allclose(solve_layers(model, weights, x, targets, scale, 1e-3), weights, atol=1e-9)
    others = [target.flip(0) for target in targets]
    assert not torch.allclose(solve_layers(model, weights, x, others, scale, 1e-3)[0], weights[0], atol=1e-2)


def test_matching_makes_better_networks_of_gaussian_samples(canonical, tasks, contexts):
    name = canonical.train.tasks[0]
    y, images = contexts[name][0], tasks[name].test
    made = ActivationMatched(Gaussian(), tasks, parents=2, images=100).fit(canonical.train, contexts, 0)
    plain, matched = (g.sample(16, y, seeded(0)) for g in (made.source, made))
    assert torch.equal(matched, made.sample(16, y, seeded(0)))
    before, after = (score(canonical.train.model, w, images.x, images.y).loss.mean() for w in (plain, matched))
    assert after < before
    first = canonical.train.layout.slices()["conv1.weight"]
    assert torch.allclose(plain[:, first], matched[:, first], atol=1e-6)  # the first layer is as it was sampled


def test_rescaled_samples_have_the_spread_of_the_task(canonical, contexts):
    class Narrow(Gaussian):
        def draw(self, n, rows, generator):
            return rows.mean(0) + 0.2 * (super().draw(n, rows, generator) - rows.mean(0))

    name = canonical.train.tasks[0]
    made = Rescaled(Narrow(), "narrow").fit(canonical.train, contexts, 0)
    sampled = made.sample(400, contexts[name][0], seeded(3))
    rows, x = (made.space.encode(weights) for weights in (canonical.train.task(name).weights, sampled))
    radius = lambda points: (points - points.mean(0)).norm() / (len(points) - 1) ** 0.5
    assert radius(x) / radius(rows) == pytest.approx(1, abs=0.1)


def test_further_training_is_training(canonical, tasks, contexts):
    name, training = canonical.train.tasks[0], Training(3, 50, 3e-3)
    y, images, model = contexts[name][0], tasks[name].train, canonical.train.model
    generator = seeded(4)
    weights = Retrieval().fit(canonical.train, contexts, 0).sample(4, y, generator)
    stages = further_trained(model, weights, images, training, (0.0, 0.5, 1.0), generator)
    assert torch.equal(stages[0], weights)
    again = seeded(4)
    Retrieval().fit(canonical.train, contexts, 0).sample(4, y, again)
    orders = minibatch_orders(torch.randint(2**31, (4,), generator=again).tolist(), len(images), training)
    assert torch.equal(stages[2], train_many(model, weights, images, orders, training.learning_rate)[-1])
    losses = [score(model, stage, images.x, images.y).loss.mean() for stage in stages]
    assert losses[2] < losses[0]


def point(method="a", share=0.0, accuracy=0.9, gain=0.0, spread=1.0, offset=0.1, novelty=1.0, overlap=0.4):
    return Point(method, share, accuracy, gain, spread, offset, novelty, overlap)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, None),
        ({"gain": -0.011}, "accuracy"),
        ({"spread": 0.7}, "spread"),
        ({"spread": 1.3}, "spread"),
        ({"offset": 0.26}, "offset"),
        ({"novelty": 0.8}, "novelty"),
        ({"overlap": 0.5}, "overlap"),
    ],
)
def test_each_criterion_fails_alone(change, failing):
    assert [name for name, met in criteria(point(**change), 0.41).items() if not met] == ([failing] if failing else [])


def test_the_margin_is_over_the_best_null_as_novel_and_as_cheap():
    nulls = [
        point("copy", accuracy=0.95, novelty=0.1),
        point("noisy", accuracy=0.6, novelty=0.98),
        point("wild", accuracy=0.3, novelty=1.2),
        point("trained", share=0.5, accuracy=0.92, novelty=1.0),
    ]
    assert margin(point(accuracy=0.8), nulls) == pytest.approx(0.2)
    assert margin(point(accuracy=0.8), nulls, tolerance=0.0) == pytest.approx(0.5)
    assert margin(point(accuracy=0.8, share=0.5), nulls) == pytest.approx(-0.12)
    assert margin(point(accuracy=0.8, novelty=2.0), nulls) == pytest.approx(0.5)  # against the most novel null
    assert margin(point(accuracy=0.8, novelty=0.1), nulls) == pytest.approx(-0.15)  # a copy is measured against copies
    with pytest.raises(ValueError, match="no null was trained as little as a"):
        margin(point(), [nulls[-1]])


def test_figures_draw_a_study():
    quantities = {
        "test_accuracy_mean": 0.8,
        "accuracy_gain": -0.1,
        "spread": 1.0,
        "offset": 0.2,
        "nearest_training_distance": 0.9,
        "error_overlap": 0.3,
        "seconds_sample": 0.5,
    }
    starts = ("matched", "gaussian", "fresh")
    keys = [("zoo_held_out", 1.0), *((method, share) for method in starts for share in (0.0, 0.3))]
    same = lambda x: {"value": x, "low": x, "high": x}
    records = [
        {"quantity": q, "method": method, "setting": {"zoo": "shared", "share": share}, **same(x)}
        for method, share in keys
        for q, x in quantities.items()
    ]
    kinds, shares = {"shared": "one start"}, {0.0: "as they come", 0.3: "trained further"}
    fig = figures_frontier.criteria(records, kinds, ["zoo_held_out", *starts], shares)
    dots = [len(dots.get_offsets()) for dots in fig.axes[1].collections if isinstance(dots, PathCollection)]
    assert len(fig.axes) == 5 and fig.axes[0].get_ylabel() == "one start" and dots[:2] == [4, 3]
    records[-1]["value"] = 1.5  # so long do 30 % of a training take, and so 5 seconds a whole one
    costs = figures_frontier.costs_of(charts.frame(records))
    assert costs["fresh", 0.3] == pytest.approx(0.3) and costs["matched", 0.0] == pytest.approx(0.1)
    curves = figures_frontier.further_training(records, kinds, ["matched", "fresh"])
    assert [list(line.get_xdata()) for line in curves.axes[0].lines][1] == pytest.approx([0.1, 0.3])
    plt.close("all")


def test_what_lies_outside_of_a_panel_is_an_arrow_at_its_edge():
    table = pd.DataFrame({"quantity": "q", "method": ["a", "b", "c"], "value": [-2.0, 0.5, 3.0]})
    table = table.assign(low=table["value"], high=table["value"])
    (ax,) = charts.comparison(table, {"q": charts.Measure("q", limits=(0, 1))}).axes
    places = [dots.get_offsets().tolist() for dots in ax.collections if isinstance(dots, PathCollection)]
    assert places == [[[-2, 0], [0.5, 1], [3, 2]], [[0, 0]], [[1, 2]]]
    plt.close("all")
