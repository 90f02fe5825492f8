"""The LoRA encoder: its gauge, exact round trips, training as a plain loop does it, any torch module, the study."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from module_examples import resnet18

from flownlib.chapters import c02_low_rank as studies_lora
from flownlib.chapters import c02_resnet as studies_resnet
from flownlib.chapters.shared_resnet import colour_task
from flownlib.encoders import Standardiser
from flownlib.extensions.lora import LatentClassifier, LoRA, adapt
from flownlib.extensions.modules import ModuleClassifier
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.networks import cnn_medium, mlp
from flownlib.optimisation import seeded
from flownlib.plots import encoders as figures_encoders
from flownlib.scoring import Split, score
from flownlib.speed.plan import Training, minibatch_orders

WHOLE = ("*.bias", "fc2.*")
CNN = cnn_medium(1)


def own_module() -> torch.nn.Module:
    """A module that no batched classifier here knows, with a convolution, a norm layer and a head."""
    layers = [torch.nn.Conv2d(1, 6, 3), torch.nn.GroupNorm(2, 6), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(216, 10)]
    return torch.nn.Sequential(*layers)


OWN = ModuleClassifier("own", (1, 8, 8), own_module)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_space(model=CNN, rank: int = 3, whole=WHOLE, factored=("*.weight",), dtype=torch.float64) -> LoRA:
    return LoRA.of(model.layout, model.initialise(1, generator(), dtype)[0], rank, factored, whole)


def scaled(space: LoRA) -> LoRA:
    """The space after it has been fitted to networks of its own."""
    return space.standardised(space.decode(some_latents(space, 8, seed=5)))


def some_latents(space: LoRA, n: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, space.latent_dim, generator=generator(seed), dtype=space.base.dtype)


SPACES = {
    "cnn": a_space(),
    "cnn, scaled": scaled(a_space()),
    "rank one": a_space(rank=1),
    "module": scaled(a_space(OWN, 2, ("1.*", "*.bias", "4.*"), ("0.weight",))),
}


@pytest.fixture(params=SPACES)
def space(request) -> LoRA:
    return SPACES[request.param]


def regauged(space: LoRA, latents: torch.Tensor, seed: int = 2) -> torch.Tensor:
    """Other latents of the same networks: (B G, G⁻¹ A), where each layer and network has a G of singular values from 1 to 3."""
    parts, r = space.latent_layout.unflatten(space.standardiser.inverse(latents)), space.rank
    for number, name in enumerate(space.factored):
        random = torch.randn(2, len(latents), r, r, generator=generator(seed + number), dtype=latents.dtype)
        left, right = torch.linalg.qr(random)[0]
        gauge = left @ torch.diag(torch.linspace(-3, -1, r, dtype=latents.dtype)) @ right
        parts |= {f"{name}.B": parts[f"{name}.B"] @ gauge, f"{name}.A": torch.linalg.solve(gauge, parts[f"{name}.A"])}
    return space.standardiser.forward(space.latent_layout.flatten(parts))


def test_the_canonical_form_is_the_same_in_every_gauge(space: LoRA):
    latents = some_latents(space)
    others = regauged(space, latents)
    assert (others - latents).abs().max() > 0.5
    torch.testing.assert_close(space.decode(others), space.decode(latents), atol=1e-11, rtol=0)
    torch.testing.assert_close(space.canonical(others), space.canonical(latents), atol=1e-10, rtol=0)
    assert (space.canonical(latents) - latents).abs().max() > 0.5


def test_another_network_has_another_canonical_form(space: LoRA):
    latents = some_latents(space)
    parts = dict(space.latent_layout.unflatten(latents.clone()))
    parts[f"{space.factored[0]}.B"] = 1.5 * parts[f"{space.factored[0]}.B"]  # without A / 1.5: no gauge transformation
    other = space.latent_layout.flatten(parts)
    assert (space.decode(other) - space.decode(latents)).abs().max() > 1e-2
    assert (space.canonical(other) - space.canonical(latents)).abs().max() > 1e-2


def test_encode_inverts_decode_up_to_the_gauge(space: LoRA):
    latents = some_latents(space)
    weights, canonical = space.decode(latents), space.canonical(latents)
    torch.testing.assert_close(space.encode(weights), canonical, atol=1e-9, rtol=0)
    torch.testing.assert_close(space.decode(canonical), weights, atol=1e-11, rtol=0)
    torch.testing.assert_close(space.decode(space.encode(weights)), weights, atol=1e-11, rtol=0)
    torch.testing.assert_close(space.canonical(canonical), canonical, atol=1e-10, rtol=0)


def test_canonical_factors_are_balanced_ordered_and_signed():
    space = a_space()
    parts = space.latent_layout.unflatten(space.canonical(some_latents(space)))
    for name in space.factored:
        b, a = parts[f"{name}.B"], parts[f"{name}.A"]
        gram = b.mT @ b
        torch.testing.assert_close(gram, a @ a.mT, atol=1e-11, rtol=0)
        values = gram.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(gram, torch.diag_embed(values), atol=1e-11, rtol=0)
        assert (values.diff() < 0).all() and (b.gather(-2, b.abs().argmax(-2, keepdim=True)) > 0).all()


def test_decoding_is_w0_plus_ba_and_leaves_the_rest():
    space = a_space(factored=("conv2.weight",), whole=("fc2.bias",))
    latents = some_latents(space, 2)
    b, a, bias = latents[1, :96].view(32, 3), latents[1, 96 : 96 + 432].view(3, 144), latents[1, 528:]
    before, after = CNN.layout.unflatten(space.base), CNN.layout.unflatten(space.decode(latents)[1])
    torch.testing.assert_close(after["conv2.weight"].flatten(1) - before["conv2.weight"].flatten(1), b @ a, atol=1e-12, rtol=0)
    torch.testing.assert_close(after["fc2.bias"] - before["fc2.bias"], bias, atol=1e-12, rtol=0)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"conv2.weight", "fc2.bias"}
    assert (space.latent_dim, space.adapted_size) == (3 * (32 + 144) + 10, 32 * 144 + 10)


@pytest.mark.parametrize("rank", [0, 1, 4, 9])
def test_encoding_is_the_best_approximation_of_its_rank(rank: int):
    """What is left of a change are its later singular values (Eckart and Young 1936)."""
    space, networks = a_space(rank=rank), CNN.initialise(2, generator(3), torch.float64)
    left = CNN.layout.unflatten(networks - space.decode(space.encode(networks)))
    change = CNN.layout.unflatten(networks - space.base)
    for name in space.factored:
        values = torch.linalg.svdvals(change[name].flatten(2))
        torch.testing.assert_close(left[name].flatten(1).norm(dim=1), values[:, rank:].norm(dim=1), atol=1e-10, rtol=0)
    assert all(left[name].abs().max() < 1e-12 for name in space.whole)


def test_latents_are_of_unit_scale_where_the_space_was_fitted():
    space = a_space()
    networks = space.decode(0.01 * some_latents(space, 50))
    latents = space.standardised(networks).encode(networks)
    parts = space.latent_layout.unflatten(latents)
    assert latents.mean(0).abs().max() < 1e-9 and space.encode(networks).std() < 0.1
    assert all(part.square().mean().item() == pytest.approx(1, abs=1e-6) for part in parts.values())


def test_decoding_has_exact_gradients():
    space = scaled(a_space(mlp((3,), (1, 2, 2), 4), 2))
    assert torch.autograd.gradcheck(space.decode, some_latents(space, 2).requires_grad_())


def glyph_like(tasks: int = 3, images: int = 40) -> Split:
    """The images of some tasks one after the other: a class is a random picture with noise."""
    labels = torch.arange(10).repeat(tasks * images // 10)
    pictures = torch.randn(tasks, 10, 1, 32, 32, generator=generator(7), dtype=torch.float64)
    x = pictures[torch.arange(tasks).repeat_interleave(images), labels]
    return Split(x + torch.randn(x.shape, generator=generator(8), dtype=torch.float64) / 3, labels)


def orders_of(tasks: int = 3, images: int = 40, epochs: int = 2) -> torch.Tensor:
    orders = minibatch_orders(range(tasks), images, Training(epochs, 10))
    return orders + images * torch.arange(tasks)[:, None, None]


def test_adapting_starts_at_the_base_and_is_a_plain_loop_for_each_task():
    space, data, orders, rate = a_space(rank=2), glyph_like(), orders_of(), 1e-2
    start = space.start(3, generator())
    assert torch.equal(space.decode(start), space.base.expand(3, -1)) and start.unique(dim=0).shape == start.shape
    together = space.decode(adapt(CNN, space, start, data, orders, rate)[-1])
    for task in range(3):
        parameters = {
            name: tensor[task].clone().requires_grad_() for name, tensor in space.latent_layout.unflatten(start).items()
        }
        optimizer, module = torch.optim.Adam(parameters.values(), lr=rate), CNN.module().double()
        for batch in orders[task]:
            weights = CNN.layout.state_dict(space.base)
            for name in weights:
                if name in space.factored:
                    change = parameters[f"{name}.B"] @ parameters[f"{name}.A"]
                    weights[name] = weights[name] + change.view_as(weights[name])
                else:
                    weights[name] = weights[name] + parameters[name]
            optimizer.zero_grad()
            F.cross_entropy(torch.func.functional_call(module, weights, (data.x[batch],)), data.y[batch]).backward()
            optimizer.step()
        latest = space.latent_layout.flatten({name: tensor.detach()[None] for name, tensor in parameters.items()})
        torch.testing.assert_close(space.decode(latest)[0], together[task], atol=1e-9, rtol=0)


def test_adapting_learns_each_task():
    space, data = a_space(rank=1), glyph_like()
    after = space.decode(adapt(CNN, space, space.start(3, generator()), data, orders_of(epochs=20), 1e-2)[-1])
    for task in range(3):
        x, y = data.x[40 * task : 40 * task + 40], data.y[40 * task : 40 * task + 40]
        right = score(CNN, torch.stack([space.base, after[task]]), x, y).accuracy
        assert right[1] > right[0] + 0.5
    changed = CNN.layout.unflatten(after[0] - space.base)
    assert all(torch.linalg.matrix_rank(changed[name].flatten(1), rtol=1e-8) == 1 for name in space.factored)


def test_a_module_of_ones_own_is_adapted_by_the_names_of_its_tensors():
    space = a_space(OWN, 2, ("4.*",), ("0.weight",), torch.float32)
    x, y = torch.randn(20, 1, 8, 8, generator=generator()), torch.arange(10).repeat(2)
    latents = adapt(OWN, space, space.start(1, generator()), Split(x, y), torch.arange(20).expand(1, 30, -1), 1e-2)[-1]
    module = own_module()
    module.load_state_dict(OWN.state_dict(space.decode(latents)[0]), strict=True)
    torch.testing.assert_close(module(x), LatentClassifier(OWN, space).forward(latents, x)[0], atol=1e-5, rtol=0)
    assert (module(x).argmax(1) == y).float().mean() > 0.9


def test_saved_and_loaded_it_decodes_identically(space: LoRA, tmp_path):
    save_artifact(tmp_path / "space", space.as_artifact())
    artifact, latents = load_artifact(tmp_path / "space"), some_latents(space)
    loaded = LoRA.from_artifact(artifact)
    assert torch.equal(loaded.decode(latents), space.decode(latents)) and artifact.meta["encoder"] == "lora"
    assert torch.equal(loaded.encode(space.decode(latents)), space.encode(space.decode(latents)))


def test_it_follows_the_dtype_of_its_inputs(space: LoRA):
    scaling = Standardiser(space.standardiser.mean.float(), space.standardiser.scale.float())
    single, latents = replace(space, base=space.base.float(), standardiser=scaling), some_latents(space)
    weights = single.decode(latents.float())
    assert weights.dtype == single.encode(weights).dtype == single.start(2, generator()).dtype == torch.float32
    torch.testing.assert_close(weights.double(), space.decode(latents), atol=1e-5, rtol=1e-5)


def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match="this layout holds 10565 numbers a network, the weights have 12"):
        a_space().encode(torch.zeros(2, 12, dtype=torch.float64))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"factored": (), "whole": ()}, "needs tensors to adapt"),
        ({"factored": ("conv9.*",)}, "no tensor matches 'conv9"),
        ({"factored": ("*",), "whole": ()}, "tensor 'conv1.bias' of shape .* is no matrix"),
        ({"rank": 10}, "a change of 'conv1.weight' has a rank from 0 to 9, not 10"),
    ],
)
def test_a_space_that_cannot_be_is_refused(choice: dict, message: str):
    with pytest.raises(ValueError, match=message):
        a_space(**choice)


def test_resnet_by_layer_name():
    model = resnet18()
    base = model.layout.flatten({name: tensor.detach() for name, tensor in model.template.named_parameters()})
    space = LoRA.of(model.layout, base, 2, ("layer4.*.conv*.weight",), ("fc.*",))
    # 2 (512 + 256 · 9) for the first of four convolutions, 2 (512 + 512 · 9) for the others, and the head
    assert space.latent_dim == 2 * (512 + 2304) + 3 * 2 * (512 + 4608) + 5130
    latents = space.start(1, generator())
    latents += 0.1 * torch.randn(latents.shape, generator=generator())
    state, before = model.state_dict(space.decode(latents)[0]), model.template.state_dict()
    module = model.module()
    module.load_state_dict(state, strict=True)
    changed = {name for name in before if not torch.equal(before[name], state[name])}
    assert changed == {*space.factored, "fc.weight", "fc.bias"} and len(space.factored) == 4
    x = torch.randn(2, 3, 32, 32, generator=generator())
    torch.testing.assert_close(module(x), LatentClassifier(model, space).forward(latents, x)[0], atol=1e-4, rtol=1e-4)


def test_the_study_pairs_each_rank_with_full_fine_tuning_and_is_drawn(smoke):
    tasks, training = studies_lora.alphabets(smoke), Training(smoke.lora_epochs, smoke.batch_size)
    base = studies_lora.base_weights(smoke, 0, tasks)
    every = studies_lora.Comparison.of(studies_lora.MODEL, base, tasks, training, 0)
    records = studies_lora.compare(every, every, studies_lora.spaces(base), studies_lora.LEARNING_RATES[:1], {})
    accuracy = {r["method"] + str(r["setting"].get("rank")): r for r in records if r["quantity"] == "test_accuracy_mean"}
    assert len(accuracy) == 2 + len(studies_lora.RANKS) and all(len(r["values"]) == 12 for r in records)
    (gain,) = [r for r in records if r["quantity"] == "accuracy_gain" and r["setting"]["rank"] == 1]
    paired = zip(accuracy["lora1"]["values"], accuracy["full_fine_tuningNone"]["values"], gain["values"], strict=True)
    assert all(a - b == pytest.approx(difference, abs=1e-6) for a, b, difference in paired)
    assert gain["setting"]["adapted"] / gain["setting"]["latent_dim"] > 10
    drawn = [record | {"value": 0.5, "low": 0.4, "high": 0.6} for record in accuracy.values()]
    (ax,) = figures_encoders.rank_curve(drawn).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1\n877", "2\n1,461", "4\n2,629"]
    plt.close("all")


def test_the_last_stage_of_a_resnet_is_adapted_by_layer_name(smoke):
    model = studies_resnet.stage(smoke, 0)
    base, task = studies_resnet.without_head(model, 0), model.task(colour_task("greek", smoke))
    space = LoRA.of(model.layout, base, 1, studies_resnet.MATRICES, studies_resnet.WHOLE)
    assert model.layout.size == space.adapted_size > 100 * space.latent_dim
    orders = minibatch_orders([0], len(task.train), Training(3, 20))
    latents = adapt(model, space, space.start(1, seeded(0)), task.train, orders, 1e-2)[-1]
    loss = [score(model, weights, task.train.x, task.train.y).loss for weights in (base[None], space.decode(latents))]
    assert float(loss[0]) == pytest.approx(math.log(10), rel=1e-5) and loss[1] < loss[0] - 0.1
