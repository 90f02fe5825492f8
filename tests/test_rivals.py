"""The flow's rivals: diffusion against closed forms, kernel density, hypernetwork; and the context they share."""

from functools import partial

import pytest
import torch

from flownlib.chapters.shared_methods import variant
from flownlib.encoders import WeightSpace
from flownlib.extensions.caml import CAMLContext
from flownlib.extensions.diffusion import LatentDiffusion, NoiseSchedule, reverse
from flownlib.extensions.regression import HyperNetwork, KernelDensity
from flownlib.generators import FlowGenerator, FlowTraining


def test_noise_schedule_is_that_of_ho_et_al():
    schedule, product = NoiseSchedule.linear(1000), 1.0
    for s in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * s / 999)
        assert schedule.alpha_bars[s].item() == pytest.approx(product, rel=1e-4)
    for level in (0, 17, 999):
        assert schedule.level(torch.tensor([schedule.time(level)])).item() == level
    assert schedule.level(torch.tensor([0.0, 1.0])).tolist() == [999, 0]
    x_0, x_1 = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    sample = schedule.sample(x_0, x_1, torch.full((4,), schedule.time(300)))
    abar = schedule.alpha_bars[300]
    assert torch.allclose(sample.x_t, abar**0.5 * x_1 + (1 - abar) ** 0.5 * x_0) and sample.target("noise") is x_0


def exact_noise(schedule, mean, deviation):
    """E[eps | x] where the data are N(mean, deviation^2)."""

    def noise_of(x, t):
        abar = schedule.alpha_bars[schedule.level(t)].double()[:, None]
        return (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * deviation**2 + 1 - abar)

    return noise_of


@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["ddim", "ddpm"])
def test_with_the_exact_noise_both_samplers_reach_the_data(eta):
    schedule = NoiseSchedule(NoiseSchedule.linear(1000).alpha_bars.double())
    mean, deviation = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    sampled = reverse(schedule, exact_noise(schedule, mean, deviation), x, 1000, eta, generator)
    assert (sampled.mean(0) - mean).abs().max() < 0.08
    assert (sampled.std(0) / deviation - 1).abs().max() < 0.05
    if eta == 0:  # deterministic
        again = reverse(schedule, exact_noise(schedule, mean, deviation), x, 1000, eta, torch.Generator().manual_seed(9))
        assert torch.equal(sampled, again)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_ddim_recovers_a_single_point_in_any_number_of_steps(steps):
    schedule = NoiseSchedule(NoiseSchedule.linear(1000).alpha_bars.double())
    point = torch.tensor([0.3, -1.2], dtype=torch.float64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise_of = exact_noise(schedule, point, torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(reverse(schedule, noise_of, x, steps, 0.0, None), point.expand(5, -1))


@pytest.fixture(scope="module")
def two_tasks(canonical):
    """Contexts that say which of two tasks is meant, and the zoo in standardised weights."""
    names = canonical.train.tasks
    contexts = {name: torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) * 0.1 + i for i, name in enumerate(names)}
    return canonical.train, contexts, WeightSpace.fit(canonical.train)


def test_diffusion_is_deterministic_uses_its_context_and_can_be_sampled_otherwise(two_tasks):
    zoo, contexts, space = two_tasks
    training = FlowTraining(steps=8, batch_size=8)
    make = lambda: LatentDiffusion(space, width=16, training=training, steps=5, eta=0.0).fit(zoo, contexts, 0)
    model, y = make(), contexts[zoo.tasks[0]][0]
    seeded = lambda: torch.Generator().manual_seed(0)
    assert torch.equal(model.sample(3, y, seeded()), make().sample(3, y, seeded()))
    assert not torch.allclose(model.sample(3, y, seeded()), model.sample(3, contexts[zoo.tasks[1]][0], seeded()))
    other = variant(model, name="latent_other", steps=7, eta=1.0)
    assert other.name == "latent_other" and other.denoiser is model.denoiser and model.steps == 5
    with pytest.raises(ValueError, match="has no field 'stepz' to change"):
        variant(model, stepz=7)
    assert not torch.allclose(other.sample(3, y, seeded()), model.sample(3, y, seeded()))


def test_kernel_density_recombines_coordinates(two_tasks):
    zoo, contexts, space = two_tasks
    name = zoo.tasks[1]
    rows = space.encode(zoo.task(name).weights)
    draw = lambda **choice: space.encode(
        KernelDensity(space, **choice).fit(zoo, contexts, 0).sample(40, contexts[name][0], torch.Generator().manual_seed(0))
    )
    apart = draw(bandwidth=0.0)
    distance = (apart[:, None] - rows[None]).abs()
    assert distance.min(1).values.max() < 1e-4  # each coordinate is some network's
    assert distance.amax(2).min(1).values.min() > 0.1  # no sample is a network
    noise = draw(bandwidth=1.0) - apart
    assert (noise.std(0) / (rows.std(0) * len(rows) ** -0.2)).mean().item() == pytest.approx(1, abs=0.05)


def test_hypernetwork_answers_with_the_mean_of_its_task(two_tasks):
    zoo, contexts, space = two_tasks
    model = HyperNetwork(space, width=32, training=FlowTraining(steps=300, learning_rate=1e-2)).fit(zoo, contexts, 0)
    for name in zoo.tasks:
        answer = model.sample(3, contexts[name][0], torch.Generator())
        assert torch.equal(answer[0], answer[2])
        rows, found = space.encode(zoo.task(name).weights), space.encode(answer[:1])
        assert (found - rows.mean(0)).norm() < 0.3 * (rows - rows.mean(0)).norm(dim=1).mean()


def test_caml_context_ignores_order_within_a_class_and_follows_labels():
    torch.manual_seed(0)
    reader = CAMLContext(dim=4, way=3, out=7, width=8, depth=1).double()
    support = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # 5 images a class
    y = reader(support.flatten(1))
    assert y.shape == (2, 7)
    assert torch.allclose(reader(support[:, :, [3, 1, 4, 0, 2]].flatten(1)), y)
    assert not torch.allclose(reader(support[:, [1, 0, 2]].flatten(1)), y)


def test_a_flow_reads_support_sets_through_caml(two_tasks):
    zoo, _, space = two_tasks
    sets = {name: torch.randn(3, 10 * 2 * 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(zoo.tasks)}
    training, reader = FlowTraining(steps=4, batch_size=8), partial(CAMLContext, 4, 10, width=8, depth=1)
    fit = lambda: FlowGenerator(space, width=16, training=training, conditioner=reader).fit(zoo, sets, 0)
    flow = fit()
    torch.rand(1)  # the network comes from the seed alone
    again = fit()
    assert all(map(torch.equal, flow.velocity.parameters(), again.velocity.parameters()))
    samples = [flow.sample(2, sets[name][0], torch.Generator().manual_seed(0)) for name in zoo.tasks]
    assert samples[0].shape == (2, zoo.layout.size) and not torch.allclose(*samples)


@pytest.mark.parametrize("choice", [{"coupling": "optimal_within"}, {"path": "variance_preserving"}, {"predicts": "noise"}])
def test_flow_generators_take_their_choices_by_name(two_tasks, choice):
    zoo, contexts, space = two_tasks
    training = FlowTraining(steps=4, batch_size=8)
    flow = FlowGenerator(space, width=16, training=training, **choice).fit(zoo, contexts, 0)
    plain = FlowGenerator(space, width=16, training=training).fit(zoo, contexts, 0)
    y, seeded = contexts[zoo.tasks[0]][0], lambda: torch.Generator().manual_seed(0)
    samples = flow.sample(3, y, seeded())
    assert samples.isfinite().all() and not torch.allclose(samples, plain.sample(3, y, seeded()))


def test_likelihoods_need_a_prior_with_a_density(two_tasks):
    from flownlib.extensions.fresh_networks import FreshNetworks
    from flownlib.extensions.likelihood import latent_log_likelihood

    zoo, contexts, space = two_tasks
    training = FlowTraining(steps=2, batch_size=8)
    y = contexts[zoo.tasks[0]][0]
    flow = FlowGenerator(space, width=16, training=training).fit(zoo, contexts, 0)
    assert latent_log_likelihood(flow, zoo.weights[:2], y, torch.Generator().manual_seed(0)).isfinite().all()
    fresh = FlowGenerator(space, width=16, training=training, prior=FreshNetworks(zoo.model, space)).fit(zoo, contexts, 0)
    with pytest.raises(ValueError, match="FreshNetworks has none"):
        latent_log_likelihood(fresh, zoo.weights[:2], y, torch.Generator().manual_seed(0))


def test_the_tuned_settings_are_those_with_the_best_validation_accuracy():
    from flownlib.chapters.shared_methods import GRID, KINDS, tuned
    from flownlib.harness.results import read

    records = read("study_tuning")["records"]
    for kind in KINDS:
        for method, choices in GRID.items():
            found = {
                choice: record["value"]
                for choice in range(len(choices))
                for record in records
                if record["method"] == method and record["setting"] == {"zoo": kind, **choices[choice]}
            }
            assert len(found) == len(choices) == 4, (kind, method)
            assert tuned(kind, method) == choices[max(found, key=found.get)], (kind, method)
