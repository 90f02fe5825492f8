"""Balancing, permuting and matching never change a function, and do what they are for."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from module_examples import ResidualBlock, residual_classifier, resnet18
from torch import nn

from flownlib.extensions.modules import ModuleClassifier
from flownlib.extensions.traced_symmetry import Norm, of_module
from flownlib.networks import CLASSIFIERS, Classifier, cnn_small, mlp
from flownlib.symmetry import Aligner, balance, match, permute, rescale
from flownlib.weights import Axis, Group, Rescaling, Symmetries
from flownlib.zoo import Zoo


class PreActivation(nn.Module):
    """A block whose norm comes first (He et al. 2016b): beside the shortcut it reads the stream, whose scale is not free.

    Nor is that of a sum with the output of a norm that has no weight.
    """

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 8, 3, padding=1)
        self.bn2, self.bn3, self.shortcut = nn.BatchNorm2d(5), nn.BatchNorm2d(8, affine=False), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        return self.shortcut(x) + self.bn3(self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu()))


def mixed():
    """Every other kind of part in one network: norms before and after a ReLU and a flattening, smooth activations."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.BatchNorm2d(6), PreActivation(), nn.ReLU(), nn.Conv2d(8, 6, 1)),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(54), nn.LeakyReLU(), nn.Linear(54, 12), nn.LayerNorm(12), nn.ReLU()),
        *(nn.Linear(12, 9), nn.LayerNorm(9, elementwise_affine=False), nn.GELU(), nn.Dropout()),
        *(nn.Linear(9, 7), nn.SiLU(), nn.Linear(7, 10)),
    )


def flattened():
    """A batch norm of flattened channels: each position has its own variance, so a channel's is not to be had."""
    return nn.Sequential(nn.Conv2d(1, 6, 5, 4), nn.Flatten(), nn.BatchNorm1d(54), nn.ReLU(), nn.Linear(54, 10))


CHAINS = [*CLASSIFIERS.values(), mlp((16, 12))]
RESIDUAL = [residual_classifier(), residual_classifier(4, 4)]
MIXED = ModuleClassifier("mixed", (1, 14, 14), mixed, statistics=True)
FLATTENED = ModuleClassifier("flattened", (1, 14, 14), flattened, statistics=True)
MODELS = [*CHAINS, *RESIDUAL, MIXED, FLATTENED]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def generic(model, n, generator):
    """Networks [n, p] in float64 without anything special about them, their batch norms' statistics included."""
    if isinstance(model, Classifier):
        return model.initialise(n, generator, torch.float64) * 2
    tensors = model.layout.unflatten(model.initialise(n, generator, torch.float64))
    for name, tensor in tensors.items():
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensors[name] = 0.05 + 3 * noise if "running_var" in name else tensor + 0.4 * (noise - 0.5)
    return model.layout.flatten(tensors)


def networks(model, n=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *model.image_shape, generator=generator, dtype=torch.float64)
    return generic(model, n, generator), x, generator


def orders(m, group, generator):
    return torch.rand(m, group.units, generator=generator).argsort(1)


def scrambled(model, weights, generator):
    """The same functions with the units of every group in random order."""
    tensors = model.layout.unflatten(weights)
    for group in model.symmetries.groups:
        tensors = permute(tensors, group, orders(len(weights), group, generator))
    return model.layout.flatten(tensors)


def change(model, tensors, weights, x):
    return (model.forward(model.layout.flatten(tensors), x) - model.forward(weights, x)).abs().max()


@each_model
def test_functions_are_unchanged(model):
    weights, x, generator = networks(model)
    before = model.forward(weights, x)
    balanced = balance(model, weights)
    assert (model.forward(balanced, x) - before).abs().max() < 1e-10
    matched = match(model, balanced, balanced[0], generator)
    assert (model.forward(matched, x) - before).abs().max() < 1e-10
    assert (balanced - weights).abs().max() > 1e-3 and (matched - balanced).abs().max() > 1e-3


@each_model
def test_a_group_moves_all_of_its_axes_or_none(model):
    weights, x, generator = networks(model, 1)
    tensors = model.layout.unflatten(weights)
    for group in model.symmetries.groups:
        order = orders(1, group, generator).roll(1, dims=1)
        assert change(model, permute(tensors, group, order), weights, x) < 1e-10
        for left_out in group.axes:
            partial = Group(group.units, tuple(axis for axis in group.axes if axis != left_out))
            assert change(model, permute(tensors, partial, order), weights, x) > 1e-6, left_out


@each_model
def test_a_rescaling_multiplies_and_divides(model):
    weights, x, generator = networks(model, 1)
    tensors = model.layout.unflatten(weights)
    for rescaling in model.symmetries.rescalings:
        scale = 0.5 + torch.rand(1, rescaling.multiplied[0].units(tensors).shape[2], generator=generator, dtype=torch.float64)
        assert change(model, rescale(tensors, rescaling, scale), weights, x) < 1e-10
        for left_out in rescaling.multiplied + rescaling.divided:
            parts = (tuple(a for a in axes if a != left_out) for axes in (rescaling.multiplied, rescaling.divided))
            assert change(model, rescale(tensors, Rescaling(*parts), scale), weights, x) > 1e-6, left_out


@each_model
def test_matching_undoes_a_permutation(model):
    weights, x, generator = networks(model, 1)
    moved = scrambled(model, weights, generator)
    assert (moved - weights).norm() > 1
    assert (model.forward(moved, x) - model.forward(weights, x)).abs().max() < 1e-10
    assert (match(model, moved, weights[0], generator, restarts=20) - weights).abs().max() < 1e-12


@each_model
def test_balancing_undoes_rescalings(model):
    weights, _, generator = networks(model)
    known, tensors = model.symmetries, model.layout.unflatten(weights)
    for rescaling in known.rescalings[:1]:
        units = rescaling.multiplied[0].units(tensors).shape[2]
        tensors = rescale(tensors, rescaling, 0.5 + torch.rand(3, units, generator=generator, dtype=torch.float64))
    for norm in known.norms:
        # the equation by hand: W → s W, mean → s mean, variance → s² (variance + epsilon) - epsilon
        variance = tensors[norm.variance.tensor]
        scale = 0.5 + torch.rand(variance.shape, generator=generator, dtype=torch.float64)
        tensors[norm.variance.tensor] = scale**2 * (variance + norm.epsilon) - norm.epsilon
        for axis in norm.multiplied:
            shape = (*scale.shape, *[1] * (tensors[axis.tensor].dim() - 2))
            tensors[axis.tensor] = tensors[axis.tensor] * scale.view(shape)
    moved = model.layout.flatten(tensors)
    assert (moved - weights).norm() > 1e-1
    assert (balance(model, weights, rounds=60) - balance(model, moved, rounds=60)).abs().max() < 1e-3


@pytest.mark.parametrize("model", [*CHAINS, *RESIDUAL], ids=lambda model: model.name)
def test_balancing_equalises_norms_and_variances(model):
    weights, _, _ = networks(model)
    known, tensors = model.symmetries, model.layout.unflatten(balance(model, weights, rounds=200))
    for rescaling in known.rescalings:
        into, out = (
            sum(axis.units(tensors).square().sum((1, 3)) for axis in axes) for axes in (rescaling.multiplied, rescaling.divided)
        )
        assert (into - out).abs().max() < 1e-2 * out.max()
    for norm in known.norms:
        assert (tensors[norm.variance.tensor] + norm.epsilon - 1).abs().max() < 1e-12


def test_a_dead_channel_keeps_a_finite_scale_and_a_variance():
    model = RESIDUAL[0]
    weights, x, _ = networks(model, 1)
    tensors = {name: tensor.clone() for name, tensor in model.layout.unflatten(weights).items()}
    tensors["1.running_var"][0, :2] = torch.tensor([0.0, 1e-7])
    weights = model.layout.flatten(tensors)
    balanced = balance(model, weights, rounds=1)
    before = model.forward(weights, x)
    assert (model.forward(balanced, x) - before).abs().max() < 1e-10 * before.abs().max()
    found = model.layout.unflatten(balanced)
    assert found["1.running_var"].min() >= 0
    assert found["0.weight"].abs().max() <= 100 * tensors["0.weight"].abs().max()


@pytest.mark.parametrize("model", CHAINS, ids=lambda model: model.name)
def test_layers_and_graph_give_the_same_description(model):
    assert model.symmetries == of_module(model.module())
    assert ModuleClassifier("plain", model.image_shape, model.module).symmetries == model.symmetries


def test_a_chain_in_full():
    conv = (Axis("conv3.weight", 0), Axis("conv3.bias", 0))
    flattened = (Axis("fc1.weight", 1, repeat=9),)
    found = cnn_small().symmetries
    assert found.groups[2] == Group(4, conv + flattened) and found.rescalings[2] == Rescaling(conv, flattened)
    assert [group.units for group in found.groups] == [8, 6, 4, 20] and found.norms == ()


def test_a_residual_block_in_full():
    block = nn.Sequential(nn.Conv2d(1, 4, 1), ResidualBlock(4, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    norm = ("weight", "bias", "running_mean", "running_var")
    stream = (
        *(Axis("0.weight", 0), Axis("0.bias", 0), Axis("1.conv1.weight", 1), Axis("1.conv2.weight", 0)),
        *(Axis(f"1.bn2.{name}", 0) for name in norm),
        Axis("3.weight", 1, repeat=4),
    )
    inner = (Axis("1.conv1.weight", 0), *(Axis(f"1.bn1.{name}", 0) for name in norm), Axis("1.conv2.weight", 1))
    assert of_module(block) == Symmetries(
        (Group(4, stream), Group(4, inner)),
        (
            Rescaling((stream[0], stream[1], stream[4], stream[5]), (stream[2], stream[8])),
            Rescaling((inner[1], inner[2]), (inner[5],)),
        ),
        (
            Norm((inner[0], inner[3]), inner[4], 1e-5),
            Norm((stream[3], stream[6]), stream[7], 1e-5),
        ),
    )


@pytest.mark.parametrize(("name", "groups"), [("resnet18", 4 + 8), ("resnet34", 4 + 16), ("resnet50", 1 + 4 + 2 * 16)])
def test_torchvision_resnets_have_a_group_a_stage_and_the_blocks_own(name, groups):
    import torchvision

    with torch.device("meta"):  # structure only
        found = of_module(getattr(torchvision.models, name)())
    assert len(found.groups) == len(found.rescalings) == groups
    shared = {"layer3.0.downsample.1.running_var", "layer3.1.conv1.weight", "layer4.0.downsample.0.weight"}
    assert sum(shared <= {axis.tensor for axis in group.axes} for group in found.groups) == 1


def test_resnet18_is_unchanged():
    model = resnet18(statistics=True)
    weights, x, generator = networks(model, 1)
    before = model.forward(weights, x[:2])
    moved = scrambled(model, balance(model, weights, rounds=1), generator)
    assert (model.forward(moved, x[:2]) - before).abs().max() < 1e-10 * before.abs().max()
    assert (moved - weights).norm() > 10


class Unlike(nn.Module):
    """A sum of flattened channels and single units."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(1, 4, 1), nn.Linear(9, 36)

    def forward(self, x):
        return self.conv(x).flatten(1) + self.layer(x.flatten(1))


class Branching(nn.Module):
    """Its graph depends on its input."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x.flatten(1)).relu())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "the symmetries of '_1', Conv2d.*groups=2"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), "GroupNorm.*are not known here"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 4)), "Linear.*are not known here"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(4, 4)), "Flatten.*are not known here"),
        (Unlike(), "the symmetries of 'add', .*, are not known here"),
        (Branching(), "the symmetries of Branching are not known, its graph has no trace"),
        (Twice(), "the symmetries of 'layer', which is used twice"),
    ],
)
def test_what_is_not_known_is_refused(module, reason):
    with pytest.raises(ValueError, match=reason):
        of_module(module)


@pytest.mark.parametrize(
    "changes", [{"statistics": False}, {"patterns": ("*.weight",)}, {"patterns": ("3.*",)}, {"patterns": ("7.*",)}]
)
def test_a_part_of_what_a_permutation_moves_is_refused(changes):
    model = replace(RESIDUAL[0], **changes)
    with pytest.raises(ValueError, match=r"lie along .* too, which is not among its weights: take all of them"):
        balance(model, model.initialise(1, torch.Generator()))


def around_one_base(model, n, scale, generator):
    """A zoo of n networks around one base, in the order of the base's units."""
    base = generic(model, 1, generator)
    weights = base + scale * torch.randn(n, base.shape[1], generator=generator, dtype=torch.float64)
    tensors = model.layout.unflatten(weights)
    positive = {name: tensor.abs() for name, tensor in tensors.items() if "running_var" in name}
    table = pd.DataFrame({"task": ["a", "b"] * (n // 2), "seed": range(n)})
    return Zoo(model.layout.flatten(tensors | positive), table, model)


@pytest.mark.parametrize("reference", ["task", "joint"])
def test_alignment_brings_scrambled_residual_networks_back_together(reference):
    model, generator = residual_classifier(4), torch.Generator().manual_seed(0)
    zoo = around_one_base(model, 8, 0.03, generator)
    lost = zoo.with_weights(scrambled(model, zoo.weights, generator))
    found = Aligner.fit(lost, rounds=2, reference=reference)(lost)
    before, raw = (torch.pdist(balance(model, weights)) for weights in (zoo.weights, lost.weights))
    after = torch.pdist(found.weights)
    assert raw.min() > 1.5 * before.max()
    assert (after - before).abs().max() < 1e-10
    x = torch.randn(4, 1, 28, 28, generator=generator, dtype=torch.float64)
    assert (model.forward(found.weights, x) - model.forward(zoo.weights, x)).abs().max() < 1e-10


def test_a_joint_reference_serves_every_task_and_a_tasks_own_does_not():
    generator = torch.Generator().manual_seed(0)
    zoo = around_one_base(cnn_small(), 4, 0.03, generator)
    stranger = replace(zoo, table=zoo.table.assign(task="c"))
    joint, own = (Aligner.fit(zoo, rounds=1, restarts=1, reference=reference) for reference in ("joint", "task"))
    assert torch.equal(joint(stranger).weights[0], joint(zoo.task("a")).weights[0])
    assert joint.references == {} and set(own.references) == {"a", "b"}
    with pytest.raises(ValueError, match="there is no reference for task 'c'"):
        own(stranger)
    with pytest.raises(ValueError, match='the reference is "task" or "joint", not \'mean\''):
        Aligner.fit(zoo, reference="mean")


def test_alignment_brings_networks_closer_and_keeps_their_accuracy(canonical, smoke):
    from flownlib.chapters import shared as recipes
    from flownlib.speed.collect import collect

    raw, _ = collect(recipes.zoo_settings(smoke, 0), progress=False).split(smoke.held_out_per_task)
    for task in raw.tasks:
        before, after = raw.task(task), canonical.train.task(task)
        distance = [torch.pdist(balance(before.model, before.weights)).mean(), torch.pdist(after.weights).mean()]
        assert distance[1] < 0.95 * distance[0]
