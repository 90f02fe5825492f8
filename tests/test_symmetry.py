"""Balancing, permuting and matching never change a function, and do what they are for."""

import pytest
import torch

from flownlib.classifiers import CLASSIFIERS, mlp
from flownlib.symmetry import balance, hidden_layers, match, permute

MODELS = [make() for make in CLASSIFIERS.values()] + [mlp((16, 12))]


def networks(model, n=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *model.image_shape, generator=generator, dtype=torch.float64)
    return model.initialise(n, generator, torch.float64) * 2, x, generator


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_functions_are_unchanged(model):
    weights, x, generator = networks(model)
    before = model.forward(weights, x)
    balanced = balance(model, weights)
    assert (model.forward(balanced, x) - before).abs().max() < 1e-10
    matched = match(model, balanced, balanced[0], generator)
    assert (model.forward(matched, x) - before).abs().max() < 1e-10
    assert (balanced - weights).abs().max() > 1e-3 and (matched - balanced).abs().max() > 1e-3


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_matching_undoes_a_permutation(model):
    weights, x, generator = networks(model, 1)
    tensors = model.layout.views(weights)
    for hidden in hidden_layers(model):
        tensors = permute(tensors, hidden, torch.randperm(hidden.units, generator=generator)[None])
    scrambled = model.layout.join(tensors)
    assert (scrambled - weights).norm() > 1
    assert (model.forward(scrambled, x) - model.forward(weights, x)).abs().max() < 1e-10
    assert (match(model, scrambled, weights[0], generator, restarts=20) - weights).abs().max() < 1e-12


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_balancing_equalises_norms_and_undoes_a_rescaling(model):
    weights, _, generator = networks(model)
    tensors = {name: tensor.clone() for name, tensor in model.layout.views(weights).items()}
    hidden = hidden_layers(model)[0]
    scale = torch.rand(3, hidden.units, generator=generator, dtype=torch.float64) + 0.5
    first, bias, following = f"{hidden.layer}.weight", f"{hidden.layer}.bias", f"{hidden.following}.weight"
    tensors[first] = tensors[first] * scale.view(3, -1, *[1] * (tensors[first].dim() - 2))
    tensors[bias] = tensors[bias] * scale
    tensors[following] = (hidden.outgoing(tensors) / scale[:, None, :, None]).reshape_as(tensors[following])
    a, b = balance(model, weights, rounds=60), balance(model, model.layout.join(tensors), rounds=60)
    assert (a - b).abs().max() < 1e-3


def test_alignment_brings_networks_closer_and_keeps_their_accuracy(canonical, smoke):
    from flownlib import recipes
    from flownlib.zoo import collect

    raw, _ = collect(recipes.zoo_settings(smoke, 0), progress=False).split(smoke.held_out_per_task)
    for task in raw.tasks:
        before, after = raw.task(task), canonical.train.task(task)
        distance = [torch.pdist(balance(before.model, before.weights)).mean(), torch.pdist(after.weights).mean()]
        assert distance[1] < 0.95 * distance[0]
