"""A torch module with the interface of a classifier: exact against the module itself, trained and evaluated like the rest."""

import pytest
import torch
from module_examples import residual_classifier, resnet18

from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import cnn_small
from flownlib.scoring import Split, score
from flownlib.speed.loops import train_many, train_one
from flownlib.speed.plan import Training, initial_weights, minibatch_orders


def recurrent() -> torch.nn.Module:
    """Something no batched classifier here knows."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.LayerNorm(12), torch.nn.GELU(), torch.nn.Linear(12, 10)
    )


NORMS, HEAD = ("*bn?.*", "*.downsample.1.*"), ("fc.*",)
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
    "patterns, size, tensors", [(NORMS, 9600, 40), (HEAD, 5130, 2), (NORMS + HEAD, 14730, 42), (("*",), 11_181_642, 62)]
)
def test_resnet_by_subset(patterns, size, tensors):
    model = resnet18(patterns)
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


def test_a_subset_trains_and_the_rest_stays():
    model = resnet18(NORMS + HEAD)
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(12, 3, 32, 32, generator=generator), torch.arange(12) % 10)
    trained = train_many(model, model.initialise(2, generator), split, minibatch_orders(range(2), 12, Training(2, 6)), 1e-3)[-1]
    before, after = model.template.state_dict(), model.state_dict(trained[0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= set(model.layout.names) and not torch.equal(trained[0], trained[1])


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no floating-point tensor matches"):
        _ = ModuleClassifier("own", (1, 8, 8), recurrent, ("nothing.*",)).layout


class Odd(torch.nn.Module):
    """A module whose forward is given; two layers."""

    def __init__(self, forward=None) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(12, 6), torch.nn.Linear(6, 4)
        self.run = forward or (lambda module, x: module.b(torch.relu(module.a(x.flatten(1)))))

    def forward(self, x):
        return self.run(self, x)


class Tied(Odd):
    """Two layers are one, under two names."""

    def __init__(self) -> None:
        super().__init__(
            lambda module, x: module.b(torch.relu(module.c(module.d(x.flatten(1)).relu()) + module.a(x.flatten(1))))
        )
        self.c, self.d = torch.nn.Linear(12, 6), torch.nn.Linear(12, 12)
        self.a.weight, self.scale = self.c.weight, torch.nn.Parameter(torch.tensor(2.0))


class Recurrent(torch.nn.Module):
    """A recurrent layer, which vmap does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = torch.nn.LSTM(3, 5, batch_first=True), torch.nn.Linear(5, 4)

    def forward(self, x):
        return self.o(self.r(x.flatten(2).transpose(1, 2))[0][:, -1])


def in_place(module, x):
    x = x.flatten(1).clone()
    x += module.a.weight[0]
    return module.b(torch.relu(module.a(x)))


def into_zeros(module, x):
    y = torch.zeros(len(x), 4)
    y[:] = module.b(torch.relu(module.a(x.flatten(1))))
    return y


def branching(module, x):
    return module.b(module.a(x.flatten(1)) * (1 if module.a.bias.sum() > 0 else -1))


def stashing(module, x):
    module.hidden = module.a(x.flatten(1))
    return module.b(module.hidden)


def old_weight_norm():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.utils.weight_norm(torch.nn.Linear(12, 4)))


WORKING = {
    "tied and scalar": Tied,
    "LSTM": Recurrent,
    "in-place add of a parameter": lambda: Odd(in_place),
    "writes into zeros": lambda: Odd(into_zeros),
    "branch on a parameter": lambda: Odd(branching),
    "notes its hidden layer": lambda: Odd(stashing),
    "double precision": lambda: Odd().double(),
    "old weight_norm": old_weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("build", WORKING.values(), ids=WORKING)
def test_modules_as_people_have_them_run_and_train_exactly(build):
    model = ModuleClassifier("odd", (3, 2, 2), build)
    weights = model.initialise(3, torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    logits = model.forward(weights, x)
    assert model.num_classes == 4 and weights.unique(dim=0).shape == weights.shape
    (gradient,) = torch.autograd.grad(logits.square().sum(), weights)
    for row, vector in enumerate(weights.detach()):
        module = build().eval()
        module.load_state_dict(model.state_dict(vector), strict=True)
        own = module.float()(x)
        assert torch.allclose(own, logits[row], atol=1e-5)
        gradients = dict(
            zip(
                dict(module.named_parameters()),
                torch.autograd.grad(own.square().sum(), [*module.parameters()], allow_unused=True),
                strict=True,
            )
        )
        known = {
            name: g if g is not None else torch.zeros(shape)
            for (name, g), shape in zip(gradients.items(), model.layout.shapes, strict=True)
        }
        assert torch.allclose(model.layout.flatten(known), gradient[row], atol=1e-4)
    own_images = torch.stack([x, x.flip(0), -x])
    assert torch.allclose(model.forward(weights, own_images)[1], logits[1].flip(0), atol=1e-5)
    assert "Batched" not in repr(vars(model.template))  # nothing of a batched run stays behind


def complex_parameter():
    module = Odd()
    module.phase = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    return module


def renaming():
    module = Odd()
    module._register_state_dict_hook(lambda _, state, prefix, __: state.update({f"x.{prefix}": state.pop("a.weight")}))
    return module


REFUSED = {
    "dropout without training=": (
        lambda: Odd(lambda m, x: m.b(torch.dropout(m.a(x.flatten(1)), 0.5, True))),
        "other logits each time",
    ),
    "a dict": (lambda: Odd(lambda m, x: {"logits": m.b(m.a(x.flatten(1)))}), "returns dict for 3 images: wrap it"),
    "a picture": (lambda: Odd(lambda m, x: x), "returns a tensor 3 × 3 × 2 × 2 for 3 images: wrap it"),
    "lazy": (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4)), "has no size yet: run the module once"),
    "meta": (lambda: Odd().to("meta"), "on the meta device"),
    "other images": (
        lambda: torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.BatchNorm1d(12, track_running_stats=False), torch.nn.Linear(12, 4)
        ),
        "depend on the other images of a batch: give its batch norms running statistics",
    ),
    "writes into its images": (lambda: Odd(lambda m, x: m.b(m.a(x.add_(1).flatten(1)))), "writes into the images"),
    "complex": (complex_parameter, "has a complex parameter, 'phase'"),
    "renamed when saved": (renaming, "under another name or not at all"),
    "wrong images": (lambda: torch.nn.Linear(7, 4), "cannot run on images 3 × 2 × 2: "),
    "fails": (lambda: 1 / 0, "cannot be built: division by zero"),
    "no module": (lambda: 3, "cannot be built: 'int' object has no attribute 'eval'"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("build, words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_a_function_of_its_weights_is_refused_when_described(build, words):
    with pytest.raises(ValueError, match=words) as caught:
        ModuleClassifier("odd", (3, 2, 2), build)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("odd ")


def test_a_build_that_seeds_itself_never_gives_equal_networks_silently(caplog):
    def build():
        torch.manual_seed(42)
        return Odd()

    model = ModuleClassifier("odd", (3, 2, 2), build)
    state = torch.get_rng_state()
    model.module()
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="odd is the same network each time it is built: let `build` set no seed"):
        model.initialise(3, torch.Generator())
    assert len(model.initialise(1, torch.Generator())) == 1 and "the same network each time" in caplog.text


def test_tied_weights_count_once_under_a_name_that_matches():
    model = ModuleClassifier("tied", (3, 2, 2), Tied)
    assert set(model.tied.values()) == set(model.layout.names) and model.tied["c.weight"] == "a.weight"
    assert model.layout.size == sum(p.numel() for p in Tied().parameters())
    with pytest.raises(ValueError, match=r'needs patterns as in \("head'):
        ModuleClassifier("tied", (3, 2, 2), Tied, "c.*")
    late = ModuleClassifier("tied", (3, 2, 2), Tied, ("c.*",))
    assert late.layout.names == ("c.weight", "c.bias")
    state = late.state_dict(torch.arange(78.0))
    assert torch.equal(state["a.weight"], state["c.weight"]) and state["a.weight"][0, 1] == 1


def test_tied_weights_are_cut_together_and_writing_across_the_cut_is_refused():
    part = ModuleClassifier("odd", (3, 2, 2), lambda: Odd(Traced.tied), ("b.*",))
    cut = SuffixClassifier.of(part)
    weights, x = part.start() + torch.randn(2, part.layout.size) / 10, torch.randn(5, 3, 2, 2)
    assert torch.allclose(cut.forward(weights, cut.features(x)), part.forward(weights, x), atol=1e-5)
    with pytest.raises(ValueError, match="odd cannot be cut, .*; use it whole"):
        SuffixClassifier.of(ModuleClassifier("odd", (3, 2, 2), lambda: Odd(Traced.writing), ("b.*",)))


class Traced:
    """Ways through two layers that a graph can follow."""

    @staticmethod
    def tied(module, x):
        return torch.nn.functional.linear(module.a(x.flatten(1)).relu(), module.b.weight, module.b.bias)

    @staticmethod
    def writing(module, x):
        h = module.a(x.flatten(1))
        return module.b(h) + module.b(h.mul_(2))
