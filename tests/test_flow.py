"""The flow's mathematics, against formulas written independently."""

import itertools
import math

import pytest
import torch

from flownlib.flow import (
    FlowTraining,
    StraightPath,
    VelocityMLP,
    flow_matching_loss,
    guided,
    integrate,
    optimal_coupling,
    train_flow,
    velocity_from_x_1,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("sigma", "shape"), list(itertools.product([0.0, 0.1, 1.0], [(5, 2), (4, 3, 6), (7, 1)])))
def test_path_is_the_formula_of_tong_et_al(sigma, shape):
    x_0, x_1 = gaussian(*shape), gaussian(*shape, seed=1)
    t = torch.rand(shape[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sample = StraightPath(sigma).sample(x_0, x_1, t, torch.Generator().manual_seed(3))
    eps = gaussian(*shape, seed=3)
    for i in range(shape[0]):
        assert torch.equal(sample.x_t[i], (1 - t[i]) * x_0[i] + t[i] * x_1[i] + (sigma * eps[i] if sigma else 0))
        assert torch.equal(sample.dx_t[i], x_1[i] - x_0[i])


@pytest.mark.parametrize("predicts", ["velocity", "x_1"])
def test_loss_is_the_mean_squared_error_of_what_is_predicted(predicts):
    torch.manual_seed(0)
    model = VelocityMLP(3, 2, width=8, predicts=predicts).double()
    torch.nn.init.normal_(model.leave.weight)
    x_0, x_1, y, t = gaussian(5, 3), gaussian(5, 3, seed=1), gaussian(5, 2, seed=2), torch.rand(5, dtype=torch.float64)
    sample = StraightPath().sample(x_0, x_1, t)
    target = x_1 if predicts == "x_1" else x_1 - x_0
    by_hand = (
        sum(((model.predict(sample.x_t[i : i + 1], t[i : i + 1], y[i : i + 1]) - target[i]) ** 2).mean() for i in range(5)) / 5
    )
    assert torch.allclose(flow_matching_loss(model, sample, y), by_hand)


def test_the_velocity_towards_the_true_end_point_is_the_paths():
    x_0, x_1 = gaussian(6, 4), gaussian(6, 4, seed=1)
    t = torch.linspace(0, 0.9, 6, dtype=torch.float64)
    sample = StraightPath().sample(x_0, x_1, t)
    assert torch.allclose(velocity_from_x_1(x_1, sample.x_t, t), sample.dx_t)


def test_optimal_coupling_is_the_best_of_all_permutations():
    x_0, x_1 = gaussian(6, 2), gaussian(6, 2, seed=1)
    cost = lambda order: (x_0[list(order)] - x_1).square().sum()
    best = min(itertools.permutations(range(6)), key=cost)
    assert torch.isclose(cost(optimal_coupling(x_0, x_1).tolist()), cost(best))


def test_coupling_within_groups_stays_within_them():
    groups = torch.tensor([0, 1, 0, 1, 0, 1])
    index = optimal_coupling(gaussian(6, 2), gaussian(6, 2, seed=1), groups)
    assert torch.equal(groups[index], groups) and sorted(index.tolist()) == list(range(6))


def model_with_context():
    torch.manual_seed(0)
    model = VelocityMLP(3, 2, width=16).double()
    torch.nn.init.normal_(model.leave.weight)
    return model


def test_guidance_at_weight_one_is_conditional_and_at_zero_unconditional():
    model = model_with_context()
    x, t, y = gaussian(4, 3), torch.full((4,), 0.3, dtype=torch.float64), gaussian(4, 2, seed=1)
    assert torch.equal(guided(model, 1.0)(x, t, y), model(x, t, y))
    assert torch.allclose(guided(model, 0.0)(x, t, y), model(x, t, None))
    expected = 3 * model(x, t, y) - 2 * model(x, t, None)
    assert torch.allclose(guided(model, 3.0)(x, t, y), expected)
    assert not torch.allclose(model(x, t, y), model(x, t, None))


def test_a_dropped_context_is_the_unconditional_field():
    model = model_with_context()
    x, t, y = gaussian(4, 3), torch.full((4,), 0.3, dtype=torch.float64), gaussian(4, 2, seed=1)
    keep = torch.tensor([True, False, True, False])
    mixed = model.predict(x, t, y, keep)
    assert torch.allclose(mixed[keep], model.predict(x, t, y)[keep])
    assert torch.allclose(mixed[~keep], model.predict(x, t, None)[~keep])


@pytest.mark.parametrize(("method", "steps", "order"), [("euler", 64, 1), ("midpoint", 64, 2), ("rk4", 64, 4)])
def test_solvers_converge_at_their_order(method, steps, order):
    # dx/dt = -x t has the solution x_0 exp(-t^2 / 2)
    field = lambda x, t, y: -x * t[:, None]
    x_0 = gaussian(3, 2)
    error = [(integrate(field, x_0, method=method, steps=n).x_1 - x_0 * math.exp(-0.5)).abs().max() for n in (steps, 2 * steps)]
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.2)


def test_adaptive_solver_and_trajectory_shape():
    field = lambda x, t, y: -x * t[:, None]
    trajectory = integrate(field, gaussian(3, 2), method="dopri5", steps=5)
    assert trajectory.x.shape == (6, 3, 2) and torch.allclose(trajectory.t, torch.linspace(0, 1, 6, dtype=torch.float64))
    assert torch.allclose(trajectory.x_1, gaussian(3, 2) * math.exp(-0.5), atol=1e-3)
    assert integrate(field, gaussian(3, 2), method="midpoint", steps=4).evaluations == 8


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="choose a solver among"):
        integrate(lambda x, t, y: x, gaussian(2, 2), method="heun9000")
    with pytest.raises(ValueError, match="at least one step"):
        integrate(lambda x, t, y: x, gaussian(2, 2), steps=0)
    with pytest.raises(ValueError, match="predicts 'velocity' or 'x_1'"):
        VelocityMLP(2, predicts="score")


@pytest.mark.parametrize("predicts", ["velocity", "x_1"])
def test_a_trained_flow_has_its_targets_mean_and_covariance(predicts):
    mean, factor = torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.0], [0.8, 0.4]])

    def draw(n, generator):
        x_0, eps = torch.randn(2, n, 2, generator=generator)
        return x_0, mean + eps @ factor.T, None

    torch.manual_seed(0)
    training = FlowTraining(steps=500, batch_size=256, learning_rate=3e-3, ema=0.99)
    model, losses = train_flow(
        VelocityMLP(2, width=48, predicts=predicts), draw, training, torch.Generator().manual_seed(0), progress=False
    )
    with torch.no_grad():
        x = integrate(model, torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)), method="midpoint", steps=12).x_1
    assert (x.mean(0) - mean).abs().max() < 0.15
    assert (torch.cov(x.T) - factor @ factor.T).abs().max() < 0.2
    assert sum(losses[-50:]) < sum(losses[:50])
