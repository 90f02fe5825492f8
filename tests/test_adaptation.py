"""Fine-tuning many networks at once, the heads they start from, the episodes they meet."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text

from flownlib.chapters import c04_study as studies_ood
from flownlib.chapters.c04_initialisations import Curve
from flownlib.extensions.adaptation import (
    EPOCHS,
    centroid_networks,
    fine_tune,
    logistic_head,
    query_accuracy,
    reorder_head,
    retrieve_matched,
    support_features,
)
from flownlib.extensions.bodies import pretrain_body, prototypical_body, train_task_zoo
from flownlib.extensions.episodes import Episodes, alphabet_episodes, draw_episodes, episodes_of
from flownlib.extensions.head_gauge import class_means
from flownlib.extensions.network_tokens import network_flow
from flownlib.extensions.reward import reward_fine_tune, split_support
from flownlib.harness import results
from flownlib.networks import cnn_embed
from flownlib.plots import charts
from flownlib.plots import ood as figures_ood
from flownlib.scoring import Split
from flownlib.speed.loops import train_one
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes

MODEL = cnn_embed()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_episodes(count: int = 3, dtype: torch.dtype = torch.float64) -> Episodes:
    pool = torch.randn(12, 8, 1, 28, 28, generator=generator(), dtype=dtype)
    pool = pool + torch.randn(12, 1, 1, 28, 28, generator=generator(1), dtype=dtype)
    return draw_episodes(pool, count, 10, 5, 3, generator(2))


def test_epoch_zero_returns_the_input():
    episodes, weights = some_episodes(), MODEL.initialise(3, generator(), torch.float64)
    assert torch.equal(fine_tune(MODEL, weights, episodes.support_x, episodes.support_y, 1e-3, epochs=(0,))[0], weights)
    checkpoints = fine_tune(MODEL, weights, episodes.support_x, episodes.support_y, 1e-3, epochs=(0, 1, 2))
    assert torch.equal(checkpoints[0], weights) and checkpoints.shape == (3, *weights.shape)


def test_fine_tuning_together_equals_a_plain_loop_for_each_network():
    episodes, weights = some_episodes(), MODEL.initialise(3, generator(), torch.float64)
    together = fine_tune(MODEL, weights, episodes.support_x, episodes.support_y, 3e-3, epochs=(2, 4), seed=5)
    for i, length in ((0, 2), (2, 4)):
        data = Split(episodes.support_x[i], episodes.support_y)
        order = minibatch_orders([5000 + i], 50, Training(4, 10, 3e-3))[0][: 5 * length]
        alone = train_one(MODEL, weights[i], data, order, 3e-3)
        torch.testing.assert_close(together[(2, 4).index(length), i], alone, atol=1e-10, rtol=0)


def test_fine_tuning_learns_its_support():
    episodes, weights = some_episodes(dtype=torch.float32), MODEL.initialise(3, generator())
    twice = episodes.support_x.unflatten(1, (10, 5)).repeat(1, 1, 2, 1, 1, 1)
    support = episodes_of(twice, episodes.classes, 5, episodes.names)
    after = fine_tune(MODEL, weights, episodes.support_x, episodes.support_y, 3e-3, (25,))[0]
    assert query_accuracy(MODEL, after, support).mean() > query_accuracy(MODEL, weights, support).mean() + 0.4


@pytest.mark.parametrize("epochs", [(), (2, 1), (1, 1), (-1, 2)])
def test_epochs_must_increase(epochs: tuple[int, ...]):
    episodes = some_episodes(1)
    with pytest.raises(ValueError, match="epochs must increase"):
        fine_tune(MODEL, MODEL.initialise(1, generator(), torch.float64), episodes.support_x, episodes.support_y, 1e-3, epochs)


def test_each_network_needs_its_own_support():
    episodes = some_episodes(2)
    with pytest.raises(ValueError, match="got 3 networks and 2 supports"):
        fine_tune(MODEL, MODEL.initialise(3, generator(), torch.float64), episodes.support_x, episodes.support_y, 1e-3)


def test_centroid_networks_make_the_nearest_centroid_decision():
    episodes, body = some_episodes(), MODEL.initialise(1, generator(), torch.float64)
    networks = centroid_networks(MODEL, body, episodes, scale=0.7)
    means = class_means(support_features(MODEL, body, episodes), 10)
    for i in range(len(episodes)):
        nearest = torch.cdist(MODEL.features(body, episodes.query_x[i])[0], means[i]).argmin(-1)
        assert torch.equal(MODEL.forward(networks[i : i + 1], episodes.query_x[i])[0].argmax(-1), nearest)


def test_logistic_regression_reaches_the_optimum_of_its_own_objective():
    features, labels = torch.randn(2, 40, 5, generator=generator(), dtype=torch.float64), torch.arange(4).repeat_interleave(10)
    features[:, :, 0] += 3 * labels
    rows, bias = logistic_head(features, labels, 4, weight_decay=1e-2, steps=2000)
    centred = features - features.mean(1, keepdim=True)
    std = centred.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-6
    logits = torch.baddbmm(bias[:, None], features, rows.transpose(1, 2))
    error = logits.softmax(-1) - torch.nn.functional.one_hot(labels, 4)
    # the gradient with respect to the rows on standardised features vanishes
    gradient = error.transpose(1, 2) @ (centred / std) / len(labels) + 2e-2 * rows * std
    assert gradient.abs().max() < 1e-3


def test_retrieval_undoes_a_hidden_relabelling():
    episodes = some_episodes(1)
    trained = fine_tune(
        MODEL, MODEL.initialise(1, generator(), torch.float64), episodes.support_x, episodes.support_y, 3e-3, (40,)
    )[0]
    order = torch.randperm(10, generator=generator(9))
    zoo = torch.cat([MODEL.initialise(4, generator(3), torch.float64), reorder_head(MODEL, trained, order)])
    assert torch.equal(retrieve_matched(MODEL, zoo, episodes), trained)


def test_reordered_head_reorders_the_logits():
    weights, x = MODEL.initialise(2, generator(), torch.float64), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    order = torch.randperm(10, generator=generator(1))
    expected = MODEL.forward(weights, x)[..., order]
    torch.testing.assert_close(MODEL.forward(reorder_head(MODEL, weights, order), x), expected, atol=1e-12, rtol=0)


def test_episodes_share_no_image_between_support_and_queries():
    episodes = some_episodes()
    for support, query in zip(episodes.support_x.flatten(2), episodes.query_x.flatten(2), strict=True):
        assert torch.cdist(support.flatten(1), query.flatten(1)).min() > 1
    assert episodes.way == 10 and all(len(set(row.tolist())) == 10 for row in episodes.classes)


def test_too_small_a_pool_is_refused():
    with pytest.raises(ValueError, match="need a pool that large"):
        draw_episodes(torch.zeros(9, 8, 1, 28, 28), 1, 10, 5, 3, generator())


def test_alphabet_episodes_share_queries_and_differ_in_support():
    task = load_task("greek", SplitSizes(200, 20, 200))
    episodes = alphabet_episodes([task], 2, shot=5, queries=8, seed=0)
    assert torch.equal(episodes.query_x[0], episodes.query_x[1])
    assert not torch.equal(episodes.support_x[0], episodes.support_x[1])
    assert episodes.names == ("greek", "greek")
    with pytest.raises(ValueError, match="test images of a class"):
        alphabet_episodes([task], 1, shot=5, queries=100, seed=0)


def test_splitting_a_support_deals_every_image_once():
    support = torch.arange(20.0)[:, None, None, None]
    context, rest = split_support(support, 4, 3, 6, generator())
    for shown, held_out in zip(context.flatten(1), rest.flatten(1), strict=True):
        assert sorted([*shown.tolist(), *held_out.tolist()]) == list(range(20))
        assert (shown // 5).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    with pytest.raises(ValueError, match="not 5"):
        split_support(support, 4, 5, 1, generator())


def test_bodies_zoo_and_reward_run_from_images_to_networks():
    pool = torch.randn(12, 10, 1, 28, 28, generator=generator()) / 2 + torch.randn(12, 1, 1, 28, 28, generator=generator(1))
    softmax = pretrain_body(MODEL, pool, 30, seed=0)
    assert not softmax[:, -MODEL.head_size :].any()
    body = prototypical_body(MODEL, softmax, pool, 30, seed=0)
    assert sum(body.losses[-5:]) < sum(body.losses[:5])
    zoo = train_task_zoo(MODEL, body.weights, pool, tasks=5, epochs=3, seed=0, group=2)
    images = pool[zoo.classes[4]].flatten(0, 1)
    accuracy = (MODEL.forward(zoo.weights[4:], images)[0].argmax(-1) == torch.arange(10).repeat_interleave(10)).float().mean()
    assert zoo.weights.shape == (5, MODEL.layout.size) and accuracy > 0.5
    flow = network_flow(MODEL, zoo.weights, body.weights, pool.flatten(0, 1), body.scale, components=4)
    support = pool[:10, :5].flatten(0, 1)
    before = [p.clone() for p in flow.parameters()]
    tuned = reward_fine_tune(flow, support, steps=2, seed=0, splits=2)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, tuned.parameters(), strict=True))


def named_episodes() -> Episodes:
    """Three episodes: two draws of an alphabet, one of real digits."""
    e = some_episodes()
    names = ("lao", "lao", "digits_handwritten")
    return Episodes(e.support_x, e.support_y, e.query_x, e.query_y, e.classes, names)


def test_study_records_pair_each_method_with_the_rival_episode_by_episode():
    rival, other = torch.rand(len(EPOCHS), 3), torch.rand(len(EPOCHS), 3)
    curves = {studies_ood.RIVAL: Curve(rival, 1e-3), "kaiming": Curve(other, 1e-2)}
    records = studies_ood.by_distance(studies_ood.curve_values(curves), named_episodes(), images=50)
    gain = {"distance": "held_out_alphabet", "images": 50, "epoch": 0, "over": studies_ood.RIVAL}
    found = [r for r in records if r["method"] == "kaiming" and r["setting"] == gain]
    assert len(found) == 1 and found[0]["values"] == pytest.approx((other - rival)[0, :2].tolist())
    by_task = studies_ood.task_records(curves, named_episodes(), images=50)
    far = [r for r in by_task if r["setting"]["task"] == "digits_handwritten" and r["quantity"] == "test_accuracy"]
    assert [r["values"] for r in far] == [[pytest.approx(rival[0, 2].item())], [pytest.approx(other[0, 2].item())]]


def test_figures_draw_one_panel_for_each_thing_asked():
    episodes, accuracy = named_episodes(), {"kaiming": torch.rand(6, 3), "class_tokens": torch.rand(6, 3)}
    drawn = {
        figures_ood.supports(episodes, [0, 2]): 2,
        charts.accuracy_curves({"near": accuracy, "far": {"kaiming": 0.1}}, EPOCHS, "epochs"): 2,
        charts.learning_curves({"flow": [3.0, 2.0, 1.0], "queries": [1.0, 1.0]}): 2,
        figures_ood.glyph_wall(torch.rand(40, 2, 1, 28, 28)): 1,
    }
    assert all(len(figure.axes) == panels for figure, panels in drawn.items())
    plt.close("all")


def test_names_beside_curves_keep_the_order_of_their_ends_and_do_not_overlap():
    ends = {"kaiming": 0.5, "class_tokens": 0.81, "zoo_average": 0.8, "retrieval_matched": 0.805}
    figure = charts.accuracy_curves({"near": {name: torch.full((6, 3), end) for name, end in ends.items()}}, EPOCHS, "epochs")
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the line to the curve
    assert [text.get_text() for text in figure.axes[0].texts] == [charts.name_of(name) for name in sorted(ends, key=ends.get)]
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:], strict=False))
    plt.close("all")


def test_live_results_count_each_alphabet_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    e = some_episodes(5)
    names = ("lao", "lao", "arabic", "digits_handwritten", "digits_handwritten")
    episodes = Episodes(e.support_x, e.support_y, e.query_x, e.query_y, e.classes, names)
    curves = {studies_ood.RIVAL: Curve(torch.zeros(len(EPOCHS), 5), 1e-3)}
    curves["kaiming"] = Curve(torch.tensor([0.2, 0.4, 0.5, 0.6, 0.8]).expand(len(EPOCHS), 5), 1e-3)
    rewarded = {"before": torch.zeros(3), "held_out": torch.tensor([0.1, 0.2, 0.3]), "same": torch.zeros(3)}
    studies_ood.write_live({"cnn_embed": curves}, rewarded, episodes, ("tutorial", 0))
    records = results.read("04_ood_finetuning", tmp_path / "results")["records"]
    gains = {(r["method"], r["setting"]["distance"]): r for r in records if r["quantity"] == "accuracy_gain"}
    near, far = gains["kaiming", "held_out_alphabet"], gains["kaiming", "far"]
    assert (near["value"], near["n"], far["value"], far["n"]) == (pytest.approx(0.4), 2, pytest.approx(0.7), 2)
