"""Encoders, generators and their evaluate on the smoke zoo."""

import dataclasses

import pytest
import torch

from flownlib.baselines import Gaussian, Interpolation, Noise, Retrieval, Soup, all_baselines
from flownlib.chapters import shared as recipes
from flownlib.encoders import Standardiser, WeightSpace, reconstruct
from flownlib.evaluation import MEASURES, compare, error_overlap, evaluate
from flownlib.extensions.pca import PCA
from flownlib.generators import FlowGenerator, FlowTraining
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.vae import VAE, VAESettings, behaviour_distance, train_vae


@pytest.fixture(scope="module")
def vae(canonical, tasks):
    return train_vae(canonical.train, tasks, VAESettings(latent_dim=6, width=32, steps=12), 0, progress=False)[0]


@pytest.fixture(scope="module")
def contexts(tasks):
    return recipes.support_contexts(recipes.image_features(tasks), tasks, 2, 4, 0)


@pytest.fixture(scope="module")
def references(canonical, tasks):
    return recipes.references(canonical, tasks)


def test_standardising_is_inverted_and_gives_each_tensor_unit_scale(canonical):
    zoo = canonical.train
    standardiser = Standardiser.fit(zoo.weights, zoo.layout)
    x = standardiser.forward(zoo.weights)
    assert torch.allclose(standardiser.inverse(x), zoo.weights, atol=1e-5)
    for place in zoo.layout.slices().values():
        assert x[:, place].square().mean().item() == pytest.approx(1, rel=1e-3)


def test_pca_is_exact_at_full_rank_and_an_orthogonal_projection_below(canonical):
    zoo = canonical.train
    full = PCA.fit(zoo, len(zoo) - 1)
    assert torch.allclose(full.decode(full.encode(zoo.weights)), zoo.weights, atol=1e-4)
    assert torch.allclose(full.encode(zoo.weights).std(0), torch.ones(len(zoo) - 1), atol=1e-3)
    low = PCA.fit(zoo, 3)
    once = low.decode(low.encode(zoo.weights))
    assert torch.allclose(low.decode(low.encode(once)), once, atol=1e-4)
    with pytest.raises(ValueError, match="at most"):
        PCA.fit(zoo, len(zoo))


def test_vae_is_deterministic_standardised_and_survives_storage(canonical, tasks, vae, tmp_path):
    again = train_vae(canonical.train, tasks, vae.settings, 0, progress=False)[0]
    latents = vae.encode(canonical.train.weights)
    assert torch.equal(latents, again.encode(canonical.train.weights))
    assert latents.mean(0).abs().max() < 1e-4 and latents.std() < 1.01
    save_artifact(tmp_path / "vae", vae.as_artifact())
    loaded = VAE.from_artifact(load_artifact(tmp_path / "vae"))
    assert torch.equal(loaded.decode(latents), vae.decode(latents))
    stored = vae.as_artifact()
    wrong = dataclasses.replace(stored, meta=stored.meta | {"layout": [["w", [3]]]})
    with pytest.raises(ValueError, match="another layout"):
        VAE.from_artifact(wrong)


def test_behaviour_distance_is_a_divergence(canonical, tasks):
    weights, x = canonical.train.weights[:4], next(iter(tasks.values())).train.x[:8]
    assert behaviour_distance(canonical.train.model, weights, weights, x).abs() < 1e-6
    assert behaviour_distance(canonical.train.model, weights, weights.flip(0), x) > 0.01


def test_reconstruction_of_the_identity_is_perfect_and_of_the_mean_explains_nothing(canonical, tasks):
    zoo = canonical.held_out
    identity = reconstruct(WeightSpace.fit(canonical.train), zoo, tasks)
    assert identity.r2 == pytest.approx(1, abs=1e-5)
    assert torch.allclose(identity.accuracy_after, identity.accuracy_before, atol=0.011)

    class Mean:
        layout = zoo.layout
        encode = staticmethod(lambda w: w)
        decode = staticmethod(lambda z: zoo.weights.mean(0).expand_as(z))

    assert reconstruct(Mean, zoo, tasks).r2 == pytest.approx(0, abs=1e-5)


def test_error_overlap_by_sets():
    a, b = torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    assert torch.allclose(error_overlap(a, b), torch.tensor([[1 / 3, 0.0]]))


@pytest.mark.parametrize("generator", all_baselines(), ids=lambda generator: generator.name)
def test_nulls_sample_what_they_say(generator, canonical, contexts, references):
    name = canonical.train.tasks[1]
    generator.fit(canonical.train, contexts, 0)
    y, seeded = contexts[name][0], torch.Generator().manual_seed(0)
    weights = generator.sample(64, y, seeded)
    assert weights.shape == (64, canonical.train.layout.size)
    assert torch.equal(weights, generator.sample(64, y, torch.Generator().manual_seed(0)))
    judged = evaluate(weights, references[name])
    if isinstance(generator, (Retrieval, Noise)):
        assert judged.nearest.mean() == pytest.approx(
            getattr(generator, "strength", 0) * 49.6 / references[name].held_out_distance, rel=0.05, abs=1e-3
        )
    if isinstance(generator, Retrieval):
        assert judged.overlap.min() == 1
    if isinstance(generator, Soup):
        assert judged.spread < 1e-3 and judged.offset < 0.2  # the mean of balanced networks is not quite balanced
    if isinstance(generator, Gaussian):
        assert judged.spread == pytest.approx(1, abs=0.15) and judged.offset < 0.35
    if isinstance(generator, Interpolation):
        assert judged.spread < 1


def test_flow_generator_is_deterministic_and_uses_its_context(canonical, contexts, vae):
    training = FlowTraining(steps=15, batch_size=32)
    flows = [FlowGenerator(vae, width=16, training=training).fit(canonical.train, contexts, 0) for _ in range(2)]
    a, b = canonical.train.tasks[:2]
    samples = [flow.sample(5, contexts[a][0], torch.Generator().manual_seed(0)) for flow in flows]
    assert torch.equal(*samples)
    assert not torch.allclose(samples[0], flows[0].sample(5, contexts[b][0], torch.Generator().manual_seed(0)))


def test_comparison_has_a_row_for_every_method_and_catches_a_copier(canonical, contexts, references):
    generators = [Retrieval().fit(canonical.train, contexts, 0), Soup().fit(canonical.train, contexts, 0)]
    table = compare(generators, references, contexts, canonical.held_out, 8, 0)
    assert set(table["method"]) == {"zoo_held_out", "retrieval", "soup"} and len(table) == 3 * len(references)
    rows = table.set_index("method")
    assert rows.loc["retrieval", "nearest_training_distance"].max() < 1e-3
    assert rows.loc["zoo_held_out", "nearest_training_distance"].to_numpy() == pytest.approx(1)
    assert set(MEASURES) <= set(table.columns)


def test_best_by_validation_never_looks_at_the_test_images(canonical, references):
    reference = next(iter(references.values()))
    judged = evaluate(canonical.held_out.task(reference.task.name).weights, reference)
    assert judged.best == int(judged.validation.accuracy.argmax())
    assert judged.measures()["test_accuracy_best_by_validation"] == judged.test.accuracy[judged.best]


def test_contexts_ignore_order_and_follow_labels(tasks):
    from flownlib.context import set_mean_context

    features, labels = torch.randn(12, 3, dtype=torch.float64), torch.arange(4).repeat(3)
    y, order = set_mean_context(features, labels, 4), torch.randperm(12)
    assert torch.allclose(y, set_mean_context(features[order], labels[order], 4))
    relabel = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(set_mean_context(features, relabel[labels], 4).view(4, 3)[relabel], y.view(4, 3))
    with pytest.raises(ValueError, match="needs support images of each of the 5 classes"):
        set_mean_context(features, labels, 5)
