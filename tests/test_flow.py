"""The flow's mathematics, against formulas written independently."""

import itertools
import math

import pytest
import torch

from flownlib.extensions.class_tokens import velocity_from_x_1
from flownlib.extensions.likelihood import log_likelihood
from flownlib.extensions.neuron_tokens import NeuronTokens
from flownlib.flow import (
    PATHS,
    PREDICTIONS,
    GaussianPrior,
    StraightPath,
    VariancePreservingPath,
    VelocityMLP,
    flow_matching_loss,
    guided,
    integrate,
)
from flownlib.generators import CollapseWarning, FlowTraining, couple, optimal_coupling, train_flow
from flownlib.networks import mlp


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIGMAS, SHAPES = [0.0, 0.1, 0.7], [(5, 2), (4, 3, 6), (7, 1)]


def straight_of_tong(x_0, x_1, t, sigma, eps):
    """Tong et al. 2024, equation 14 and 15: N(t x_1 + (1 - t) x_0, sigma^2), u_t = x_1 - x_0."""
    return t * x_1 + (1 - t) * x_0 + sigma * eps, x_1 - x_0


def variance_preserving_of_tong(x_0, x_1, t, sigma, eps):
    """Albergo & Vanden-Eijnden 2023, as in Tong et al. 2024, section 3.2.4."""
    a, b = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    return a * x_0 + b * x_1 + sigma * eps, math.pi / 2 * (a * x_1 - b * x_0)


FORMULAS = {StraightPath: straight_of_tong, VariancePreservingPath: variance_preserving_of_tong}


@pytest.mark.parametrize(("path", "sigma", "shape"), list(itertools.product(FORMULAS, SIGMAS, SHAPES)))
def test_paths_are_the_formulas_of_their_papers(path, sigma, shape):
    x_0, x_1 = gaussian(*shape), gaussian(*shape, seed=1)
    t = 0.95 * torch.rand(shape[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sample = path(sigma).sample(x_0, x_1, t, torch.Generator().manual_seed(3))
    eps = gaussian(*shape, seed=3)
    for i in range(shape[0]):
        x_t, dx_t = FORMULAS[path](x_0[i], x_1[i], t[i].item(), sigma, eps[i])
        assert torch.allclose(sample.x_t[i], x_t, rtol=0, atol=1e-14)
        assert torch.allclose(sample.dx_t[i], dx_t, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS.values())
def test_the_velocity_is_the_paths_derivative_and_its_ends_are_noise_and_data(path):
    x_0, x_1 = gaussian(6, 4), gaussian(6, 4, seed=1)
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    at = lambda time: path().sample(x_0, x_1, time)
    difference = (at(t + 1e-6).x_t - at(t - 1e-6).x_t) / 2e-6
    assert torch.allclose(at(t).dx_t, difference, atol=1e-8)
    assert torch.allclose(at(torch.zeros(6, dtype=torch.float64)).x_t, x_0)
    assert torch.allclose(at(torch.ones(6, dtype=torch.float64)).x_t, x_1)


@pytest.mark.parametrize(
    ("path", "predicts", "wanted"),
    list(itertools.product(PATHS.values(), PREDICTIONS, PREDICTIONS)),
)
def test_predictions_convert_into_one_another_exactly(path, predicts, wanted):
    x_0, x_1 = gaussian(9, 4), gaussian(9, 4, seed=1)
    sample = path().sample(x_0, x_1, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    got = path().convert(sample.x_t, sample.t, sample.target(predicts), predicts, wanted)
    assert torch.allclose(got, sample.target(wanted), atol=1e-12)
    with pytest.raises(ValueError, match="predicts one of"):
        path().convert(sample.x_t, sample.t, x_1, predicts, "score")


@pytest.mark.parametrize(("path", "predicts"), list(itertools.product(PATHS, PREDICTIONS)))
def test_a_network_returns_a_velocity_whatever_it_predicts(path, predicts):
    torch.manual_seed(0)
    model = VelocityMLP(3, 2, width=8, predicts=predicts, path=PATHS[path]()).double()
    torch.nn.init.normal_(model.leave.weight)
    x, y, t = gaussian(5, 3), gaussian(5, 2, seed=2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.allclose(model.path.convert(x, t, model(x, t, y), "velocity", predicts), model.predict(x, t, y))


@pytest.mark.parametrize(("path", "predicts"), list(itertools.product(PATHS, PREDICTIONS)))
def test_loss_is_the_mean_squared_error_of_what_is_predicted(path, predicts):
    torch.manual_seed(0)
    model = VelocityMLP(3, 2, width=8, predicts=predicts).double()
    torch.nn.init.normal_(model.leave.weight)
    x_0, x_1, y, t = gaussian(5, 3), gaussian(5, 3, seed=1), gaussian(5, 2, seed=2), torch.rand(5, dtype=torch.float64)
    sample = PATHS[path]().sample(x_0, x_1, t)
    target = {"x_1": x_1, "noise": x_0, "velocity": sample.dx_t}[predicts]
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


def test_couplings_by_name_pair_as_they_say():
    x_0, x_1, groups = gaussian(6, 2), gaussian(6, 2, seed=1), torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.equal(couple("independent", x_0, x_1, groups), x_0)
    assert torch.equal(couple("optimal", x_0, x_1, groups), x_0[optimal_coupling(x_0, x_1)])
    assert torch.equal(couple("optimal_within", x_0, x_1, groups), x_0[optimal_coupling(x_0, x_1, groups)])
    with pytest.raises(ValueError, match="there is no coupling 'best'; choose one of independent"):
        couple("best", x_0, x_1, groups)


def test_priors_sample_what_their_density_says():
    prior = GaussianPrior(3, 0.5)
    x = prior.sample(20_000, torch.Generator().manual_seed(0))
    assert x.std(0) == pytest.approx([0.5] * 3, abs=0.01) and x.mean(0).abs().max() < 0.02
    expected = torch.distributions.Normal(0, 0.5).log_prob(x).sum(1)
    assert torch.allclose(prior.log_density(x), expected, atol=1e-4)


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
    assert integrate(field, gaussian(3, 2), method="midpoint", steps=4).nfe == 8


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="choose a solver among"):
        integrate(lambda x, t, y: x, gaussian(2, 2), method="heun9000")
    with pytest.raises(ValueError, match="the number of steps must be a whole number of at least 1, not 0"):
        integrate(lambda x, t, y: x, gaussian(2, 2), steps=0)
    with pytest.raises(ValueError, match="predicts 'velocity', 'x_1', 'noise', not 'score'"):
        VelocityMLP(2, predicts="score")


@pytest.mark.parametrize("predicts", ["velocity", "x_1"])
def test_a_trained_flow_has_its_targets_mean_and_covariance(predicts):
    mean, factor = torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.0], [0.8, 0.4]])

    def draw(n, generator):
        x_0, eps = torch.randn(2, n, 2, generator=generator)
        return x_0, mean + eps @ factor.T, None

    torch.manual_seed(0)
    training = FlowTraining(steps=500, batch_size=256, learning_rate=3e-3, ema=0.99)
    model, log = train_flow(
        VelocityMLP(2, width=48, predicts=predicts), draw, training, torch.Generator().manual_seed(0), progress=False
    )
    with torch.no_grad():
        x = integrate(model, torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)), method="midpoint", steps=12).x_1
    assert (x.mean(0) - mean).abs().max() < 0.15
    assert (torch.cov(x.T) - factor @ factor.T).abs().max() < 0.2
    assert sum(log.losses[-50:]) < sum(log.losses[:50])


def gaussian_flow(mean, deviation):
    """The exact marginal velocity of the straight path from N(0, I) to N(mean, deviation^2), coordinate by coordinate."""

    def field(x, t, y):
        t = t[:, None]
        variance = (1 - t) ** 2 + t**2 * deviation**2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    return field


@pytest.mark.parametrize("probes", [None, 1, 4])
def test_log_likelihood_is_the_density_of_a_gaussian_that_is_known(probes):
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    deviation = torch.tensor([0.5, 1.5, 0.2], dtype=torch.float64)
    x_1 = mean + deviation * gaussian(20, 3)
    expected = torch.distributions.Normal(mean, deviation).log_prob(x_1).sum(1)
    field = gaussian_flow(mean, deviation)
    found = log_likelihood(field, x_1, GaussianPrior(3).log_density, None, 80, probes, torch.Generator().manual_seed(0))
    # the Jacobian is diagonal here, so that vectors of signs give its trace exactly
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, torch.distributions.Normal(mean, 2 * deviation).log_prob(x_1).sum(1), atol=0.1)


def test_the_trace_estimate_is_unbiased_and_exact_with_all_unit_vectors():
    matrix = gaussian(4, 4)  # v = A x: probability moves along a linear map, and the trace is that of A
    field = lambda x, t, y: x @ matrix.T
    x = gaussian(600, 4, seed=1)
    density = GaussianPrior(4).log_density
    exact = log_likelihood(field, x, density, None, 60, None)
    # x_0 = exp(-A) x_1 and log det exp(A) = tr A
    expected = density(x @ torch.matrix_exp(-matrix).T) - matrix.trace()
    assert torch.allclose(exact, expected, atol=1e-5)
    errors = [log_likelihood(field, x, density, None, 60, r, torch.Generator().manual_seed(0)) - exact for r in (1, 16)]
    for error, probes in zip(errors, (1, 16), strict=True):
        assert abs(error.mean()) < 4 * error.std() / len(x) ** 0.5, probes
    assert errors[1].std() < 0.4 * errors[0].std()


def test_neuron_tokens_give_each_class_its_own_context():
    torch.manual_seed(0)
    layout = mlp((6,), (1, 3, 3), 4).layout
    model = NeuronTokens(layout, 4, 8, width=16, depth=1, heads=2).double()
    x, t, y = gaussian(3, layout.size), torch.rand(3, dtype=torch.float64), gaussian(3, 8, seed=1)
    assert model(x, t, y).shape == x.shape
    # the same head positions and no shared context: exchanging two classes in x and y exchanges them in the answer
    with torch.no_grad():
        for parameter in (model.position, model.leave.normal_(), model.share.normal_()):
            parameter[-4:] = parameter[-4].clone()
        model.context[-1].weight.zero_()
    head, bias = layout.slices()["fc2.weight"], layout.slices()["fc2.bias"]

    def exchanged(weights):
        weights, order = weights.clone(), [1, 0, 2, 3]
        weights[:, head] = weights[:, head].unflatten(1, (4, -1))[:, order].flatten(1)
        weights[:, bias] = weights[:, bias][:, order]
        return weights

    y_exchanged = y.unflatten(1, (4, 2))[:, [1, 0, 2, 3]].flatten(1)
    assert torch.allclose(model.predict(exchanged(x), t, y_exchanged), exchanged(model.predict(x, t, y)))
    assert not torch.allclose(model.predict(exchanged(x), t, y), exchanged(model.predict(x, t, y)))
    assert torch.allclose(model.predict(x, t, y, torch.zeros(3).bool()), model.predict(x, t, None))
    with pytest.raises(ValueError, match="cannot be divided among 4 classes"):
        NeuronTokens(layout, 4, 9)


def test_a_collapse_of_the_samples_is_noticed_and_looking_changes_nothing():
    def draw(n, generator):
        return *torch.randn(2, n, 2, generator=generator), None

    def train(dispersion):
        torch.manual_seed(0)
        training = FlowTraining(steps=6, look_every=3)
        return train_flow(VelocityMLP(2, width=8), draw, training, torch.Generator().manual_seed(0), None, False, dispersion)

    with pytest.warns(CollapseWarning, match="dispersion is 0.10 of the data's"):
        model, log = train(lambda velocity: 0.1)
    assert log.dispersions == [(3, 0.1), (6, 0.1)] and len(log.losses) == 6
    assert log.losses == train(None)[1].losses
