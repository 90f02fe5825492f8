"""Any torch module with the interface of a classifier: exact against the module itself, trained and evaluated like the rest."""

import pytest
import torch

from flownlib.extensions.modules import ModuleClassifier, torchvision_classifier
from flownlib.extensions.residual import residual_classifier
from flownlib.networks import cnn_small
from flownlib.scoring import Split, score
from flownlib.speed.loops import train_many, train_one
from flownlib.speed.plan import Training, initial_weights, minibatch_orders


def recurrent() -> torch.nn.Module:
    """Something no batched classifier here knows."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.LayerNorm(12), torch.nn.GELU(), torch.nn.Linear(12, 10)
    )


OWN = ModuleClassifier("own", (1, 8, 8), recurrent)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(60, 1, 8, 8, generator=generator, dtype=dtype), torch.randint(10, (60,), generator=generator))


def test_forward_is_the_modules_own():
    weights, x = OWN.initialise(3, torch.Generator().manual_seed(0), torch.float64), data().x
    assert weights.unique(dim=0).shape == weights.shape and OWN.num_classes == 10
    for vector, logits in zip(weights, OWN.forward(weights, x), strict=True):
        module = recurrent().double()
        module.load_state_dict(OWN.state_dict(vector), strict=True)
        assert (module(x) - logits).abs().max() < 1e-12
    own_images = torch.stack([x[:5], x[5:10], x[10:15]])
    assert torch.allclose(OWN.forward(weights, own_images)[2], OWN.forward(weights, x[10:15])[2])


def test_training_many_is_training_each():
    split, starts = data(), initial_weights(OWN, range(3), torch.float64)
    orders = minibatch_orders(range(3), 60, Training(2, 20))
    together = train_many(OWN, starts, split, orders, 3e-3)[-1]
    alone = torch.stack([train_one(OWN, starts[i], split, orders[i], 3e-3) for i in range(3)])
    assert (together - alone).abs().max() < 1e-12 and (together - starts).abs().max() > 1e-3
    assert score(OWN, together, split.x, split.y).accuracy.shape == (3,)


def test_the_same_network_both_ways():
    model = cnn_small()
    wrapped = ModuleClassifier("wrapped", model.image_shape, model.module)
    weights = model.initialise(4, torch.Generator().manual_seed(0), torch.float64)
    x = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    assert wrapped.layout == model.layout
    assert (wrapped.forward(weights, x) - model.forward(weights, x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "subset, size, tensors", [("norms", 9600, 40), ("head", 5130, 2), ("norms+head", 14730, 42), ("all", 11_181_642, 62)]
)
def test_resnet_by_subset(subset, size, tensors):
    model = torchvision_classifier("resnet18", subset, image_size=32)
    assert (model.layout.size, len(model.layout.names)) == (size, tensors)
    weights = model.initialise(2, torch.Generator().manual_seed(0))
    weights[1] += 0.01
    module = model.module()
    module.load_state_dict(model.state_dict(weights[1]), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model.forward(weights, x)[1], module(x), atol=1e-4)


def test_a_small_residual_network():
    model = residual_classifier()
    assert model.layout.size == 5266 and sum(tensor.numel() for tensor in model.template.parameters()) == 5266 - 144
    weights, x = model.initialise(2, torch.Generator().manual_seed(0)), torch.randn(3, *model.image_shape)
    module = model.module()
    module.load_state_dict(model.state_dict(weights[1]), strict=True)
    assert torch.allclose(model.forward(weights, x)[1], module(x), atol=1e-5)
    assert module[:-3](x).shape == (3, 16, 7, 7) and residual_classifier(4, 4).module()[:6](x).shape == (3, 8, 7, 7)
    block = module[3]
    assert torch.equal(block(h := module[:3](x)), torch.relu(block.bn2(block.conv2(block.bn1(block.conv1(h)).relu())) + h))
    with pytest.raises(ValueError, match="at least two blocks, one for each width, not 1"):
        residual_classifier(blocks=1)


def test_a_subset_trains_and_the_rest_stays():
    model = torchvision_classifier("resnet18", "norms+head", image_size=32)
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(12, 3, 32, 32, generator=generator), torch.arange(12) % 10)
    trained = train_many(model, model.initialise(2, generator), split, minibatch_orders(range(2), 12, Training(2, 6)), 1e-3)[-1]
    before, after = model.template.state_dict(), model.state_dict(trained[0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= set(model.layout.names) and not torch.equal(trained[0], trained[1])


@pytest.mark.parametrize("name, norms", [("convnext_tiny", 16320), ("vit_b_16", 38400)])
def test_the_other_torchvision_networks(name, norms):
    model = torchvision_classifier(name, "norms", image_size=224)
    assert model.layout.size == norms and model.num_classes == 10


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="there is no torchvision classifier 'alexnet' here; choose one of resnet18"):
        torchvision_classifier("alexnet")
    with pytest.raises(ValueError, match="there is no subset 'biases'; choose one of norms, head"):
        torchvision_classifier("resnet18", "biases")
    with pytest.raises(ValueError, match="vit_b_16 takes images 224 wide, not 64"):
        torchvision_classifier("vit_b_16")
    with pytest.raises(ValueError, match="no floating-point tensor matches"):
        _ = ModuleClassifier("own", (1, 8, 8), recurrent, ("nothing.*",)).layout
