"""Every encoder behind one protocol: storage, layouts, the networks of the autoencoders, and the latent map."""

from dataclasses import replace

import pytest
import torch

from flownlib import vae
from flownlib.chapters import c02_encoders, shared
from flownlib.chapters import c02_encoders as studies_encoders
from flownlib.encoders import reconstruct
from flownlib.extensions import weight_tokens
from flownlib.extensions.distilled_lora import DistilledLoRA
from flownlib.extensions.pca import PCA
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.networks import cnn_small, mlp
from flownlib.plots import latent_map
from flownlib.scoring import score
from flownlib.vae import ARCHITECTURES, VAESettings, behaviour_distance, train_vae
from flownlib.weights import ArtifactError


@pytest.fixture(scope="module")
def fitted(canonical, tasks, smoke):
    """Each encoder of the comparison, fitted to the smoke zoo."""
    return {name: fit(canonical.train, tasks) for name, fit in c02_encoders.fitters(smoke, 0).items()}


def test_all_architectures_are_compared(smoke):
    assert {chosen.architecture for chosen in shared.autoencoders(smoke).values()} == set(ARCHITECTURES)


def test_a_stored_encoder_decodes_to_the_same_bits(fitted, canonical, tmp_path):
    for name, encoder in fitted.items():
        save_artifact(tmp_path / name, encoder.as_artifact())
        loaded = c02_encoders.restored(load_artifact(tmp_path / name))
        latents = encoder.encode(canonical.held_out.weights)
        assert latents.shape == (len(canonical.held_out), encoder.latent_dim), name
        assert torch.equal(latents, loaded.encode(canonical.held_out.weights)), name
        assert torch.equal(encoder.decode(latents), loaded.decode(latents)), name


def test_latents_have_about_unit_scale_and_decode_to_finite_weights(fitted, canonical):
    for name, encoder in fitted.items():
        latents = encoder.encode(canonical.train.weights)
        assert 0.3 < latents.square().mean().sqrt() < 3, name
        assert encoder.decode(latents).shape == canonical.train.weights.shape and encoder.decode(latents).isfinite().all()


def test_networks_of_another_layout_are_refused_by_naming_both(fitted, canonical, tasks):
    model = mlp((4,))
    other = canonical.held_out
    other = type(other)(torch.zeros(len(other), model.layout.size), other.table, model)
    for encoder in fitted.values():
        with pytest.raises(
            ValueError, match=r"takes 2,464 numbers .conv1.weight 8×1×5×5.* holds 3,190 numbers .fc1.weight 4×784"
        ):
            reconstruct(encoder, other, tasks)


def test_what_is_no_encoder_is_refused(canonical, tmp_path):
    save_artifact(tmp_path / "zoo", canonical.train.as_artifact())
    with pytest.raises(ArtifactError, match="is not an encoder"):
        c02_encoders.restored(load_artifact(tmp_path / "zoo"))
    with pytest.raises(ValueError, match="there is no architecture 'rnn'; choose one of mlp"):
        vae.VAE(canonical.train.model, VAESettings(architecture="rnn"))


@pytest.mark.parametrize("size", [0, 7, 64])
def test_every_weight_is_in_one_token(size):
    layout = cnn_small().layout
    places = weight_tokens.token_places(layout, size)
    assert torch.equal(places[places < layout.size].sort().values, torch.arange(layout.size))
    assert places.max() <= layout.size
    if size == 0:  # the first token is the first filter and its bias
        tensors = layout.unflatten(torch.arange(layout.size))
        expected = torch.cat([tensors["conv1.weight"][0].flatten(), tensors["conv1.bias"][:1]])
        assert len(places) == 8 + 6 + 4 + 20 + 10 and torch.equal(places[0][: len(expected)], expected)


@pytest.mark.parametrize("size", [0, 64])
def test_a_token_decoder_puts_weights_where_the_encoder_found_them(size):
    """With the transformer's output replaced by the tokens themselves, decoding is the exact inverse of cutting up."""
    layout = cnn_small().layout
    encoder, decoder = weight_tokens.tokens(layout, 16, 8, size)
    weights = torch.randn(3, layout.size)
    tokens = torch.nn.functional.pad(weights, (0, 1))[:, encoder.places]
    assert torch.equal(tokens.flatten(1)[:, decoder.slots], weights)


def test_latent_tokens_share_the_latents_evenly():
    with pytest.raises(ValueError, match="8 latent tokens cannot share 12 numbers"):
        weight_tokens.tokens(cnn_small().layout, 12, 8, 64)


def test_the_linear_autoencoder_starts_as_principal_components(canonical, tasks):
    settings = VAESettings(8, steps=1, learning_rate=0.0, architecture="linear")
    linear, pca = train_vae(canonical.train, tasks, settings, 0, progress=False)[0], PCA.fit(canonical.train, 8)
    weights = canonical.held_out.weights
    latents = pca.encode(weights)
    torch.testing.assert_close(linear.encode(weights), latents, atol=1e-4, rtol=2e-3)  # the VAE's deviations are 1 + 1e-3
    torch.testing.assert_close(linear.decode(linear.encode(weights)), pca.decode(latents), atol=1e-5, rtol=1e-4)


def test_the_linear_autoencoder_learns_behaviour_and_stays_linear(canonical, tasks):
    settings = VAESettings(8, steps=40, input_noise=0.0, architecture="linear")
    linear, history = train_vae(canonical.train, tasks, settings, 0, progress=False)
    first, last = (sum(step["behaviour"] for step in part) for part in (history[:10], history[-10:]))
    assert last < 0.9 * first
    a, b = canonical.held_out.weights[:2]
    middle = (linear.encode(a[None]) + linear.encode(b[None])) / 2
    torch.testing.assert_close(linear.encode((a + b)[None] / 2), middle, atol=1e-4, rtol=1e-4)


def test_too_few_networks_for_a_linear_autoencoder_are_refused(canonical, tasks):
    with pytest.raises(ValueError, match="principal components"):
        train_vae(canonical.train, tasks, VAESettings(len(canonical.train), architecture="linear"), 0, progress=False)


@pytest.fixture(scope="module")
def distilled(canonical, tasks) -> DistilledLoRA:
    """Factors of rank 1, on few images."""
    return DistilledLoRA.fit(canonical.train, tasks, 1, steps=40, images=200)


def test_distilled_factors_keep_more_behaviour_and_less_weight_than_truncated_ones(distilled, canonical, tasks):
    zoo, space, own = canonical.held_out, distilled.space, distilled.surest(canonical.held_out.weights)
    truncated, tuned = space.decode(space.encode(zoo.weights)), distilled.decode(distilled.encode(zoo.weights))
    for number in own.unique():
        rows, name = own == number, zoo.tasks[number]
        before, after = (
            behaviour_distance(zoo.model, zoo.weights[rows], found[rows], tasks[name].validation.x)
            for found in (truncated, tuned)
        )
        assert after < 0.7 * before, name
    assert (zoo.weights - tuned).norm() > (zoo.weights - truncated).norm()  # truncation is the nearest (Eckart and Young)


def test_distilled_factors_are_canonical_and_each_networks_own(distilled, canonical):
    weights = canonical.held_out.weights
    latents = distilled.encode(weights)
    torch.testing.assert_close(distilled.space.canonical(latents), latents, atol=1e-3, rtol=1e-3)
    alone = distilled.encode(weights[[3]])
    torch.testing.assert_close(distilled.decode(alone), distilled.decode(latents[[3]]), atol=1e-2, rtol=0)
    assert not torch.allclose(distilled.decode(alone), distilled.space.decode(distilled.space.encode(weights[[3]])), atol=1e-2)


def test_a_network_that_the_factors_can_hold_gives_no_gradient(distilled, canonical, tasks):
    single = distilled.space.standardiser
    standardiser = replace(single, mean=single.mean.double(), scale=single.scale.double())
    space = replace(distilled.space, base=distilled.space.base.double(), standardiser=standardiser)
    double = replace(distilled, space=space, images=distilled.images.double(), steps=1)
    weights = space.decode(space.encode(canonical.held_out.weights.double()))
    torch.testing.assert_close(double.decode(double.encode(weights)), weights, atol=1e-10, rtol=0)
    # more steps follow rounding errors about, but the behaviour stays
    tuned, images = distilled.decode(distilled.encode(weights.float())), next(iter(tasks.values())).validation.x
    assert behaviour_distance(canonical.train.model, weights.float(), tuned, images) < 1e-3


def test_a_network_is_asked_about_the_images_it_is_surest_about(distilled, canonical):
    weights = canonical.held_out.weights
    logits = torch.stack([canonical.train.model.forward(weights, images[:100]) for images in distilled.images])
    entropies = torch.distributions.Categorical(logits=logits).entropy().mean(-1)
    assert torch.equal(distilled.surest(weights), entropies.argmin(0)) and len(distilled.surest(weights).unique()) == 2


@pytest.mark.parametrize("architecture", ["tokens", "conv1d"])
def test_an_autoencoder_learns_a_plane(canonical, tasks, architecture):
    zoo, generator = canonical.train, torch.Generator().manual_seed(0)
    coordinates = torch.randn(len(zoo), 2, generator=generator)
    zoo = zoo.with_weights(coordinates @ torch.randn(2, zoo.layout.size, generator=generator))
    plain = {"weight_loss": 1.0, "behaviour_loss": 0.0, "kl_loss": 0.0, "input_noise": 0.0, "learning_rate": 1e-2}
    settings = VAESettings(8, 16, 120, 16, architecture=architecture, **plain)
    history = train_vae(zoo, tasks, settings, 0, progress=False)[1]
    first, last = (sum(step["weights"] for step in part) / 10 for part in (history[:10], history[-10:]))
    assert last < 0.9 * first


def test_the_map_shows_what_its_points_decode_to(fitted, canonical, tasks):
    encoder, zoo = fitted["vae"], canonical.train
    found = latent_map.survey(encoder, zoo.model, zoo.weights, zoo.table["task"].tolist(), tasks, stops=5, images=50)
    centre, axes = latent_map.plane(encoder.encode(zoo.weights))
    weights = encoder.decode((centre + found.x[3] * axes[0] + found.y[1] * axes[1])[None])
    name = found.tasks[1]
    expected = score(zoo.model, weights, tasks[name].test.x[:50], tasks[name].test.y[:50], backend="torch").accuracy
    assert abs(found.accuracy[1, 1, 3] - expected[0]) < 0.021
    assert torch.allclose(found.filters[1, 3].flatten(), zoo.layout.unflatten(weights)["conv1.weight"].flatten(), atol=1e-5)
    assert found.points.amin(0)[0] >= found.x[0] and found.points.amax(0)[1] <= found.y[-1]


def test_the_walk_follows_its_sliders(fitted, canonical, tasks):
    zoo = canonical.train
    panel = latent_map.latent_walk(
        latent_map.survey(fitted["vae"], zoo.model, zoo.weights, zoo.table["task"].tolist(), tasks, stops=3, images=20)
    )
    before = panel.image.value
    panel.controls["row"].value = 2
    assert panel.image.value != before and bytes(panel.image.value).startswith(b"\x89PNG")


def test_one_graph_encoder_serves_a_width_that_it_was_not_trained_on(smoke):
    records = studies_encoders.compare_widths(0, smoke)
    r2 = {record["setting"]["zoo"]: record["values"][0] for record in records if record["quantity"] == "r2"}
    assert set(r2) == set(c02_encoders.WIDTHS) and r2["mlp_20_unseen"] > 0.05
    latents = {record["setting"]["zoo"]: record["values"][0] for record in records if record["quantity"] == "latent_dim"}
    assert [latents[zoo] / latents["mlp_16"] for zoo in c02_encoders.WIDTHS] == [1, 34 / 26, 30 / 26]  # units and outputs
