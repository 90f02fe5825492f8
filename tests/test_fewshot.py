"""Few-shot methods: closed forms against an independent computation, symmetries, and that training teaches."""

import matplotlib.pyplot as plt
import pytest
import torch
from scipy.stats import multivariate_normal

from flownlib.chapters import c05_few_shot as recipes
from flownlib.chapters.c05_few_shot import raw_records
from flownlib.extensions import adaptation
from flownlib.extensions.backbone import train_backbone
from flownlib.extensions.caml import random_labels
from flownlib.extensions.episodes import Episodes, draw_episodes
from flownlib.extensions.fewshot import CAML, PLDA, accuracy, centroid, fewer, logistic_regression, train_caml
from flownlib.extensions.head_gauge import HeadGauge
from flownlib.extensions.heads import HeadFlow, fit_flow_matching, fit_queries
from flownlib.harness import profiles
from flownlib.plots import fewshot as figures_fewshot


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pool():
    """Features of 60 classes whose images vary along known axes: two of them within a class, the rest between classes."""
    means = torch.randn(60, 1, 8, generator=seeded(0)) * torch.tensor([0.1, 0.1, 1, 1, 1, 1, 1, 1])
    noise = torch.randn(60, 40, 8, generator=seeded(1)) * torch.tensor([3, 3, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    return means + noise


@pytest.fixture(scope="module")
def episodes(pool):
    return draw_episodes(pool[:20], 60, 5, 5, 6, seeded(2))


def test_plda_is_the_predictive_density_of_its_model(pool, episodes):
    plda = PLDA.fit(pool.double(), shrink=0.0)
    within = torch.linalg.inv(plda.project @ plda.project.T)
    between = torch.linalg.inv(plda.project.T) @ torch.diag(plda.between) @ torch.linalg.inv(plda.project)
    one = episodes.at([0])
    support, query = one.support_x[0].double() - plda.mean, one.query_x[0].double() - plda.mean
    expected = []
    for images in support.unflatten(0, (5, 5)):
        # Gaussian conditioning written out in the original coordinates
        gain = between @ torch.linalg.inv(between + within / 5)
        mean, posterior = gain @ images.mean(0), between - gain @ between
        density = multivariate_normal(mean.numpy(), (posterior + within).numpy())
        expected.append(torch.from_numpy(density.logpdf(query.numpy())))
    expected = torch.stack(expected, dim=1)
    double = Episodes(support[None] + plda.mean, one.support_y, query[None] + plda.mean, one.query_y, one.classes, one.names)
    found = plda.logits(double)[0]
    assert torch.allclose(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-8)


def test_plda_knows_which_axes_to_ignore(pool, episodes):
    plda = PLDA.fit(pool[20:])
    difference = accuracy(plda.logits(episodes), episodes) - accuracy(centroid(episodes), episodes)
    assert difference.mean() > 0.1


def test_centroid_is_the_nearest_mean(episodes):
    means = episodes.support_x.unflatten(1, (5, 5)).mean(2)
    nearest = torch.cdist(episodes.query_x, means).argmin(-1)
    assert torch.equal(centroid(episodes).argmax(-1), nearest)


def test_fewer_shots_are_the_first_ones_with_the_same_queries(episodes):
    one = fewer(episodes, 1)
    assert torch.equal(one.support_x, episodes.support_x.unflatten(1, (5, 5))[:, :, 0]) and one.query_x is episodes.query_x
    assert one.support_y.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="5 support images a class, not 6"):
        fewer(episodes, 6)


def test_logistic_regression_separates_its_support(episodes):
    onto_itself = Episodes(
        episodes.support_x, episodes.support_y, episodes.support_x, episodes.support_y, episodes.classes, episodes.names
    )
    assert accuracy(logistic_regression(onto_itself, 1e-3), onto_itself).mean() > 0.97


def test_caml_queries_do_not_see_each_other_and_labels_rename_classes():
    torch.manual_seed(0)
    model = CAML(8, 5, width=16).double().eval()
    support, query, labels = torch.randn(2, 10, 8).double(), torch.randn(2, 7, 8).double(), random_labels(2, 5).double()
    logits = model(support, query, labels)
    assert torch.allclose(model(support, query[:, :1], labels), logits[:, :1])
    order = torch.tensor([4, 2, 0, 1, 3])
    swapped = support.unflatten(1, (5, 2))[:, order].flatten(1, 2)
    assert torch.allclose(model(swapped, query, labels[:, order]), logits[:, :, order])


@pytest.fixture(scope="module")
def flow(pool):
    rows, bias = torch.randn(30, 5, 8, generator=seeded(3)), torch.randn(30, 5, generator=seeded(4))
    torch.manual_seed(0)
    made = HeadFlow(HeadGauge.fit(rows, bias, pool), 8, 5, width=16)
    torch.nn.init.normal_(made.velocity.leave.weight, std=0.3)  # at the start it is zero and hides everything
    return made


def test_generated_heads_follow_the_order_of_the_classes(flow):
    double = HeadFlow(flow.gauge, 8, 5, width=16).double()
    double.load_state_dict(flow.state_dict())
    support, labels, x_0 = torch.randn(2, 10, 8).double(), random_labels(2, 5).double(), torch.randn(2, 5, 9).double()
    rows, bias = double(support, labels, x_0)
    order = torch.tensor([1, 4, 3, 0, 2])
    swapped = support.unflatten(1, (5, 2))[:, order].flatten(1, 2)
    rows_2, bias_2 = double(swapped, labels[:, order], x_0[:, order])
    assert torch.allclose(rows_2, rows[:, order]) and torch.allclose(bias_2, bias[:, order])


def test_both_losses_teach_the_head_flow(pool):
    classes = torch.rand(40, 60, generator=seeded(5)).argsort(1)[:, :5]
    labels = torch.arange(5).repeat_interleave(40)
    rows, bias = adaptation.logistic_head(pool[classes].flatten(1, 2), labels, 5, 0.01)
    frame = HeadGauge.fit(rows, bias, pool)
    torch.manual_seed(0)
    flow = HeadFlow(frame, 8, 5, width=32)
    losses = fit_flow_matching(flow, frame.to_tokens(rows, bias), classes, pool, 60, seed=0, batch_size=16)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    test = draw_episodes(pool, 100, 5, 1, 10, seeded(6))
    before = accuracy(flow.logits(test, seeded(0), noise=0), test).mean()
    fit_queries(flow, pool, 120, seed=0, episodes=16)
    after = accuracy(flow.logits(test, seeded(0), noise=0), test).mean()
    assert after > before + 0.03


def test_caml_learns(pool):
    torch.manual_seed(0)
    model, test = CAML(8, 5, width=32), draw_episodes(pool, 100, 5, 5, 5, seeded(7))
    losses = train_caml(model, pool, 400, seed=0, episodes=12)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert accuracy(model.logits(test, seeded(0)), test).mean() > 0.5


def test_backbone_features_have_one_length_and_do_not_depend_on_the_batch():
    images = torch.randn(6, 10, 1, 28, 28, generator=seeded(8))
    backbone = train_backbone(images, steps=5, seed=0, dim=16, batch_size=16)
    features = backbone.features(images)
    assert features.shape == (6, 10, 16) and torch.allclose(features.norm(dim=-1), torch.full((6, 10), 4.0))
    assert torch.allclose(backbone.features(images[2, 3:4]), features[2, 3:4], atol=1e-5)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_smoke_comparison_meets_every_method_on_the_same_episodes_and_the_panel_moves():
    settings = profiles.load("smoke", {"fewshot_episodes": 4})
    found = recipes.data(settings, 0)
    made = recipes.trained(settings, 0, found)
    accuracies = recipes.compare(made, found, 0)
    records = raw_records(accuracies)
    assert {record["method"] for record in records} == set(figures_fewshot.METHODS)
    assert all(len(record["values"]) == 4 for record in records)
    pairs = {domain: recipes.shown_episodes(found, domain, 3, 5, 0) for domain in recipes.DOMAINS}
    for domain, (seen, known) in pairs.items():
        encoder = recipes.frozen_backbone(settings, 0, found.images["train"])
        assert torch.allclose(encoder.features(seen.support_x), known.support_x, atol=1e-4), domain
    panel = figures_fewshot.episode_panel(pairs, recipes.methods(made, 0), shots=(1, 5))
    for name, value in {"episode": 2, "shot": 5, "method": "caml", "domain": "far"}.items():
        before = panel.image.value
        panel.controls[name].value = value
        assert panel.image.value != before
    plt.close("all")


def test_characters_are_in_one_pool_only():
    pools = recipes.image_pools(profiles.load("smoke"))
    for name in ("validation", "in", "ood"):
        assert not (pools[name][:, :1].flatten(1)[:, None] == pools["train"][:, :1].flatten(1)[None]).all(-1).any()
