"""Permuting hidden units permutes the graph encoder's latents and its decoded network, and changes nothing else."""

from dataclasses import replace

import pytest
import torch

from flownlib.chapters import shared as recipes
from flownlib.encoders import Standardiser, reconstruct
from flownlib.extensions.graph_encoder import Graph, graph_networks, standardiser_by_tensor
from flownlib.extensions.graph_widths import at_width, train_on_widths
from flownlib.extensions.modules import ModuleClassifier
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.networks import cnn_embed, cnn_medium, cnn_small, mlp
from flownlib.speed.collect import collect
from flownlib.speed.plan import Training
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.symmetry import permute
from flownlib.tasks import load_task
from flownlib.vae import VAE, VAESettings, train_vae

MODELS = [cnn_small(), cnn_small(strided=False), cnn_medium(1), cnn_embed(), mlp((16, 12))]
SMALL = VAESettings(
    width=48, steps=50, batch_size=12, learning_rate=4e-3, input_noise=0.0, weight_loss=10.0, behaviour_loss=0.0, kl_loss=1e-4
)
GRAPH = replace(SMALL, architecture="graph", node_dim=24, rounds=1, jitter=0.3)


def scramble(model, weights, generator):
    """The same networks with the units of every hidden layer in another order, and the orders."""
    tensors = model.layout.unflatten(weights)
    orders = [torch.rand(len(weights), hidden.units, generator=generator).argsort(1) for hidden in model.symmetries.groups]
    for hidden, order in zip(model.symmetries.groups, orders, strict=True):
        tensors = permute(tensors, hidden, order)
    return model.layout.flatten(tensors), orders


def example(model):
    """Random networks, their scrambled copies, the orders, and a random encoder and decoder, all in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = graph_networks(model, node_dim=6, width=16, rounds=3)
    weights = 5 * model.initialise(3, generator, torch.float64)
    return weights, *scramble(model, weights, generator), encoder.double(), decoder.double()


def mean_of(encoder, weights):
    """The posterior's mean, with which latents begin."""
    return encoder(weights).chunk(2, dim=1)[0].detach()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_edges_and_biases_hold_every_weight_once(model):
    graph, weights = Graph.of(model), torch.arange(2.0 * model.layout.size).view(2, -1)
    edges, biases = graph.split(weights)
    assert torch.equal(graph.join(edges, biases), weights)
    for layer, hidden in enumerate(model.symmetries.groups):
        # the numbers on the edges out of unit 1 are the weights that `symmetry` moves with it
        assert torch.equal(edges[layer + 1][:, :, 1], hidden.axes[-1].units(model.layout.unflatten(weights))[:, :, 1])
        assert edges[layer].shape[1] == biases[layer].shape[1] == graph.units[layer + 1] == hidden.units


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_latents_and_decoded_weights_follow_a_permutation(model):
    weights, scrambled, orders, encoder, decoder = example(model)
    latents, moved = mean_of(encoder, weights), mean_of(encoder, scrambled)
    assert latents.shape == (3, encoder.latent_dim) and (moved - latents).abs().max() > 1e-3
    rows, outputs = torch.arange(3)[:, None], torch.arange(10).expand(3, -1)
    layers = zip(encoder.graph.nodes(latents), encoder.graph.nodes(moved), [*orders, outputs], strict=True)
    assert all((before[rows, order] - after).abs().max() < 1e-10 for before, after, order in layers)
    tensors = model.layout.unflatten(decoder(latents))
    for hidden, order in zip(model.symmetries.groups, orders, strict=True):
        tensors = permute(tensors, hidden, order)
    assert (decoder(moved) - decoder(latents)).abs().max() > 1e-6
    assert (decoder(moved) - model.layout.flatten(tensors)).abs().max() < 1e-10


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_decoded_function_ignores_a_permutation(model):
    weights, scrambled, _, encoder, decoder = example(model)
    latents, moved = mean_of(encoder, weights), mean_of(encoder, scrambled)
    x = torch.randn(5, *model.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = model.forward(10 * decoder(latents), x)
    logits, again = logits / logits.abs().max(), model.forward(10 * decoder(moved), x) / logits.abs().max()
    assert (logits - again).abs().max() < 1e-10 < (logits[0] - logits[1]).abs().max()


def test_the_mlp_encoder_does_not():
    model = cnn_small()
    weights, scrambled, _, _, _ = example(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VAE(model, SMALL).encoder
    latents, moved = mean_of(encoder.double(), weights), mean_of(encoder, scrambled)
    assert latents.shape == (3, SMALL.latent_dim)
    # not even as a set of numbers
    assert (latents.sort(dim=1).values - moved.sort(dim=1).values).abs().max() > 1e-3


def test_the_standardiser_by_tensor_commutes_with_a_permutation():
    model = cnn_small()
    weights, scrambled, orders, _, _ = example(model)

    def moved(values):
        tensors = model.layout.unflatten(values)
        for hidden, order in zip(model.symmetries.groups, orders, strict=True):
            tensors = permute(tensors, hidden, order)
        return model.layout.flatten(tensors)

    by_tensor, by_weight = standardiser_by_tensor(weights, model.layout), Standardiser.fit(weights, model.layout)
    assert (by_tensor.forward(scrambled) - moved(by_tensor.forward(weights))).abs().max() < 1e-12
    assert (by_weight.forward(scrambled) - moved(by_weight.forward(weights))).abs().max() > 0.1
    assert (by_tensor.inverse(by_tensor.forward(weights)) - weights).abs().max() < 1e-12
    for place in model.layout.slices().values():
        assert by_tensor.forward(weights)[:, place].mean().abs() < 1e-12
        assert by_tensor.forward(weights)[:, place].square().mean() == pytest.approx(1)


def test_the_same_parameters_serve_two_widths():
    narrow, wide = mlp((16, 12)), mlp((24, 20))
    weights, _, _, encoder, decoder = example(narrow)
    on_wide = encoder.on(wide), decoder.on(wide)
    others = 5 * wide.initialise(2, torch.Generator().manual_seed(0), torch.float64)
    latents = mean_of(on_wide[0], others)
    assert latents.shape == (2, 6 * (24 + 20 + 10)) and on_wide[1](latents).shape == others.shape
    assert all(a is b for a, b in zip(encoder.parameters(), on_wide[0].parameters(), strict=True))
    assert encoder.latent_dim == 6 * (16 + 12 + 10) and decoder(mean_of(encoder, weights)).shape == weights.shape
    with pytest.raises(ValueError, match="differs from mlp_1x28x28_16_12_10 in more than the widths"):
        encoder.on(mlp((16,)))


def test_other_modules_and_architectures_are_refused():
    with pytest.raises(ValueError, match="it takes convolutions and linear layers"):
        Graph.of(ModuleClassifier("own", (1, 28, 28), cnn_small().module))
    with pytest.raises(ValueError, match="there is no architecture 'tree'; choose"):
        VAE(cnn_small(), VAESettings(architecture="tree"))


@pytest.fixture(scope="module")
def raw(smoke):
    """The smoke profile's zoo as it was trained, split."""
    return collect(recipes.zoo_settings(smoke, 0), progress=False).split(smoke.held_out_per_task)


def test_raw_networks_are_reconstructed_by_the_graph_and_not_by_the_mlp(raw, tasks, tmp_path):
    train, held_out = raw
    graph, plain = (train_vae(train, tasks, settings, 0, progress=False)[0] for settings in (GRAPH, SMALL))
    r2 = {vae: reconstruct(vae, held_out, tasks, train.weights.mean(0)).r2 for vae in (graph, plain)}
    assert r2[graph] > r2[plain] + 0.2
    latents = graph.encode(train.weights)
    for nodes in graph.encoder.graph.nodes(latents):
        assert nodes.mean((0, 1)).abs().max() < 1e-4 and nodes.std((0, 1)).max() < 1.01
    scrambled, _ = scramble(train.model, held_out.weights, torch.Generator().manual_seed(0))
    x = next(iter(tasks.values())).test.x[:20]
    decoded = [train.model.forward(graph.decode(graph.encode(weights)), x) for weights in (held_out.weights, scrambled)]
    assert (decoded[0] - decoded[1]).abs().max() < 1e-3 * decoded[0].abs().max()
    save_artifact(tmp_path / "vae", graph.as_artifact())
    assert torch.equal(VAE.from_artifact(load_artifact(tmp_path / "vae")).encode(train.weights), latents)


def test_one_set_of_parameters_reconstructs_several_widths():
    tasks = {"digits_handwritten": load_task("digits_handwritten")}
    zoos = {}
    for width in (8, 12, 16):
        settings = ZooSettings(tuple(tasks), 16, classifier=f"mlp_1x28x28_{width}_10", training=Training(5, 50))
        zoos[width] = collect(settings, workers=1, progress=False).split(4)
    vaes = train_on_widths([zoos[width][0] for width in (8, 16)], tasks, GRAPH, 0)
    assert all(a is b for a, b in zip(vaes[0].encoder.parameters(), vaes[1].encoder.parameters(), strict=True))
    vaes.append(at_width(vaes[0], zoos[12][0]))
    for vae, width in zip(vaes, (8, 16, 12), strict=True):
        train, held_out = zoos[width]
        # the last of the widths was never seen
        assert reconstruct(vae, held_out, tasks, train.weights.mean(0)).r2 > 0.1
    with pytest.raises(ValueError, match='need the architecture "graph"'):
        train_on_widths([zoos[8][0]], tasks, SMALL, 0)
