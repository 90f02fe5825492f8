"""Correctors of generated networks."""

import pytest
import torch
import torch.nn.functional as F

from flownlib.baselines import Gaussian
from flownlib.chapters import shared as recipes
from flownlib.encoders import WeightSpace
from flownlib.extensions.correction import Corrected, CorrectorTraining, correction_loss
from flownlib.scoring import score


@pytest.fixture(scope="module")
def contexts(tasks):
    return recipes.support_contexts(recipes.image_features(tasks), tasks, 2, 4, 0)


def test_the_loss_is_cross_entropy_plus_what_the_steps_cost(canonical, tasks):
    model, images = canonical.train.model, next(iter(tasks.values())).train
    weights, step = canonical.train.weights[:3].double(), torch.randn(3, model.layout.size, dtype=torch.float64)
    x, y = images.x[:5].double(), images.y[:5]
    chosen = CorrectorTraining(size_penalty=0.2, shift_penalty=0.7)
    by_hand = 0.0
    for i in range(3):
        module = model.module().double()
        module.load_state_dict(model.layout.state_dict(weights[i]))
        by_hand = by_hand + F.cross_entropy(module(x), y) / 3
    by_hand = by_hand + 0.2 * (step**2).sum() / step.numel() + 0.7 * (step.sum(0) / 3).pow(2).sum() / step.shape[1]
    assert torch.allclose(correction_loss(model, weights, step, x, y, chosen), by_hand)


def test_a_corrector_starts_as_its_source_and_then_improves_on_it(canonical, tasks, contexts):
    name = canonical.train.tasks[0]
    y, seeded = contexts[name][0], lambda: torch.Generator().manual_seed(3)
    plain = Gaussian().fit(canonical.train, contexts, 0).sample(8, y, seeded())
    none = Corrected(Gaussian(), tasks, width=16, training=CorrectorTraining(steps=1, learning_rate=0.0)).fit(
        canonical.train, contexts, 0
    )
    assert torch.allclose(none.sample(8, y, seeded()), plain, atol=1e-5)
    make = lambda: Corrected(Gaussian(), tasks, width=32, training=CorrectorTraining(60, 3e-3, 8, 32)).fit(
        canonical.train, contexts, 0
    )
    trained = make()
    sampled = trained.sample(8, y, seeded())
    assert torch.equal(sampled, make().sample(8, y, seeded())) and not torch.allclose(sampled, plain, atol=1e-3)
    images = tasks[name].train
    before, after = (score(canonical.train.model, w, images.x, images.y).loss.mean() for w in (plain, sampled))
    assert after < before - 0.04


def test_a_larger_penalty_moves_networks_less(canonical, tasks, contexts):
    space, y = WeightSpace.fit(canonical.train), contexts[canonical.train.tasks[0]][0]
    sizes = []
    for penalty in (0.01, 10.0):
        chosen = CorrectorTraining(40, 3e-3, 8, 32, penalty, penalty)
        made = Corrected(Gaussian(), tasks, width=32, training=chosen).fit(canonical.train, contexts, 0)
        x_0 = space.encode(made.source.sample(8, y, torch.Generator().manual_seed(0)))
        sizes.append(float(made.step(x_0, y).detach().norm()))
    assert sizes[1] < 0.5 * sizes[0]
