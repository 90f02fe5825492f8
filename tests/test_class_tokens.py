"""The class-token flow: blind to class order, exact gauge, losses that are the textbook's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flownlib.extensions.class_tokens import (
    ClassTokenVelocity,
    head_logits,
    query_loss,
    sample_tokens,
    token_flow_matching_loss,
)
from flownlib.extensions.head_gauge import CentroidPrior, HeadGauge, centroid_head, class_means
from flownlib.extensions.network_tokens import (
    BodyBasis,
    PixelBasis,
    fit_flow_matching,
    fit_prior,
    fit_queries,
    network_flow,
    split_head,
)
from flownlib.networks import cnn_embed

CLASSES, FEATURES, CONTEXT = 10, 6, 5


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def velocity(latent: bool = False, dim: int = FEATURES + 1) -> ClassTokenVelocity:
    """A network whose output layer is not zero, so that equalities mean something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ClassTokenVelocity(dim, CONTEXT, width=16, heads=4, latent=latent).double()
        torch.nn.init.normal_(model.leave.weight)
    return model


ORDER = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(5))


def test_class_tokens_follow_a_permutation_of_the_classes():
    model, x, y = velocity(), numbers(3, CLASSES, FEATURES + 1), numbers(3, CLASSES, CONTEXT, seed=1)
    base = numbers(3, CLASSES, FEATURES + 1, seed=2)
    straight = sample_tokens(model, x, y, 3, base)[:, ORDER]
    permuted = sample_tokens(model, x[:, ORDER], y[:, ORDER], 3, base[:, ORDER])
    torch.testing.assert_close(straight, permuted, atol=1e-10, rtol=0)


def test_a_latent_ignores_a_permutation_of_the_classes():
    model, x, y = velocity(latent=True), numbers(3, FEATURES + 1), numbers(3, CLASSES, CONTEXT, seed=1)
    torch.testing.assert_close(sample_tokens(model, x, y), sample_tokens(model, x, y[:, ORDER]), atol=1e-10, rtol=0)


def test_dropping_the_context_removes_it():
    model, x, t = velocity(), numbers(2, CLASSES, FEATURES + 1), torch.tensor([0.2, 0.7]).double()
    keep = torch.tensor([True, False])
    a = model.predict(x, t, numbers(2, CLASSES, CONTEXT, seed=1), keep)
    b = model.predict(x, t, numbers(2, CLASSES, CONTEXT, seed=2), keep)
    assert torch.equal(a[1], b[1]) and not torch.allclose(a[0], b[0])


def test_one_euler_step_is_the_prediction_and_the_base_is_added():
    model, x, y = velocity(), numbers(2, CLASSES, FEATURES + 1), numbers(2, CLASSES, CONTEXT, seed=1)
    base = numbers(2, CLASSES, FEATURES + 1, seed=4)
    expected = base + model.predict(x, torch.zeros(2).double(), y)
    torch.testing.assert_close(sample_tokens(model, x, y, 1, base), expected, atol=1e-12, rtol=0)


def test_flow_matching_loss_is_the_mean_square_of_the_written_formula():
    model, y = velocity(), numbers(4, CLASSES, CONTEXT, seed=1)
    x_0, x_1, base = (numbers(4, CLASSES, FEATURES + 1, seed=s) for s in (2, 3, 4))
    t = torch.tensor([0.0, 0.3, 0.6, 0.99]).double()
    time = t[:, None, None]
    # the path of x_1 with its base moved along: (1 - t) x_0 + t x_1 - t base
    x_t = (1 - time) * x_0 + time * x_1 - time * base
    expected = (base + model.predict(x_t, t, y) - x_1).square().mean()
    torch.testing.assert_close(token_flow_matching_loss(model, x_0, x_1, t, y, base), expected, atol=1e-12, rtol=0)


def test_query_loss_takes_shared_or_own_labels():
    logits, labels = numbers(2, 4, CLASSES), torch.tensor([0, 1, 2, 3])
    expected = (F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], labels)) / 2
    torch.testing.assert_close(query_loss(logits, labels), expected)
    assert torch.equal(query_loss(logits, labels.expand(2, 4)), query_loss(logits, labels))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 does not divide 16"):
        ClassTokenVelocity(3, 4, width=16, heads=5)


def test_gauge_round_trip_preserves_logits_up_to_one_number_an_image():
    rows, bias, features = numbers(7, CLASSES, FEATURES), numbers(7, CLASSES, seed=1), 2 + numbers(7, 20, FEATURES, seed=2)
    gauge = HeadGauge.fit(rows, bias, features)
    before = head_logits(rows, bias, features)
    after = head_logits(*gauge.from_tokens(gauge.to_tokens(rows, bias)), features)
    difference = before - after
    torch.testing.assert_close(difference, difference[..., :1].expand_as(difference), atol=1e-10, rtol=0)
    torch.testing.assert_close(before.softmax(-1), after.softmax(-1), atol=1e-10, rtol=0)


def test_gauge_is_blind_to_what_softmax_ignores_and_has_unit_scale():
    rows, bias, features = numbers(7, CLASSES, FEATURES), numbers(7, CLASSES, seed=1), numbers(50, FEATURES, seed=2)
    gauge = HeadGauge.fit(rows, bias, features)
    tokens = gauge.to_tokens(rows, bias)
    shifted = gauge.to_tokens(rows + numbers(7, 1, FEATURES, seed=3), bias + numbers(7, 1, seed=4))
    torch.testing.assert_close(tokens, shifted, atol=1e-10, rtol=0)
    torch.testing.assert_close(tokens[..., :-1].square().mean(), torch.tensor(1.0).double())
    torch.testing.assert_close(tokens[..., -1].square().mean(), torch.tensor(1.0).double())


def test_gauge_refuses_heads_without_differences():
    with pytest.raises(ValueError, match="classes differ"):
        HeadGauge.fit(torch.ones(2, CLASSES, FEATURES), torch.ones(2, CLASSES), torch.randn(5, FEATURES))


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_centroid_head_decides_by_the_nearest_mean(scale: float):
    support, features = numbers(3, CLASSES * 4, FEATURES), numbers(3, 30, FEATURES, seed=1)
    means = class_means(support, CLASSES)
    logits = head_logits(*centroid_head(means, scale), features)
    distances = torch.cdist(features, means).square()
    assert torch.equal(logits.argmax(-1), distances.argmin(-1))
    torch.testing.assert_close(logits.log_softmax(-1), (-scale * distances).log_softmax(-1), atol=1e-10, rtol=0)


def test_centroid_prior_starts_as_the_centroid_head():
    means, features = 3 + numbers(2, CLASSES, FEATURES), 3 + numbers(2, 30, FEATURES, seed=1)
    gauge = HeadGauge.fit(numbers(4, CLASSES, FEATURES, seed=2), numbers(4, CLASSES, seed=3), features)
    logits = head_logits(*gauge.from_tokens(CentroidPrior(0.5).double()(means, gauge)), features)
    expected = head_logits(*centroid_head(means, 0.5), features)
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=0)


def test_class_means_need_equal_classes():
    with pytest.raises(ValueError, match="31 for 10"):
        class_means(torch.zeros(1, 31, 4), 10)


def test_body_coordinates_invert_the_basis():
    bodies, origin = numbers(5, 40), numbers(40, seed=1)
    basis = BodyBasis.fit(bodies, origin, components=32)
    z = basis.coordinates(bodies)
    assert z.shape == (5, 5)
    torch.testing.assert_close(origin + z @ basis.basis, bodies, atol=1e-8, rtol=0)
    torch.testing.assert_close(z.square().mean(0), torch.ones(5).double(), atol=1e-8, rtol=0)


def test_pixel_basis_is_a_centred_projection_of_half_size_images():
    images = numbers(60, 1, 28, 28)
    basis = PixelBasis.fit(images, components=8)
    x = F.avg_pool2d(images, 2).flatten(1)
    scores = basis(images[None])[0]
    torch.testing.assert_close(scores.mean(0), torch.zeros(8).double(), atol=1e-8, rtol=0)
    singular = torch.linalg.svd(x - x.mean(0))[1][:8]
    torch.testing.assert_close(scores.norm(dim=0) / scores.norm(), singular / singular.norm(), atol=1e-8, rtol=0)


def small_flow(dtype: torch.dtype = torch.float64):
    """A flow on a random zoo and pool."""
    model = cnn_embed()
    pool, zoo = numbers(14, 8, 1, 28, 28).to(dtype), 0.2 * numbers(6, model.layout.size, seed=1).to(dtype)
    classes = torch.stack([torch.randperm(14, generator=torch.Generator().manual_seed(i))[:10] for i in range(6)])
    body = torch.cat([zoo[:1, : -model.head_size], zoo.new_zeros(1, model.head_size)], dim=1)
    flow = network_flow(model, zoo, body, pool.flatten(0, 1), 0.05, components=4).to(dtype)
    return flow, zoo, classes, pool


def test_a_generated_network_does_not_depend_on_the_order_of_its_classes():
    flow, _, _, pool = small_flow()
    with torch.no_grad():
        torch.nn.init.normal_(flow.body_flow.leave.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        torch.nn.init.normal_(flow.head_flow.leave.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        support, (z_0, x_0) = pool[None, :10, :5], flow.noise(1, torch.Generator().manual_seed(2))
        weights = flow(support.flatten(1, 2), (z_0, x_0))
        permuted = flow(support[:, ORDER].flatten(1, 2), (z_0, x_0[:, ORDER]))
    query = pool[10:].flatten(0, 1)
    straight = flow.model.forward(weights, query)[..., ORDER]
    torch.testing.assert_close(straight, flow.model.forward(permuted, query), atol=1e-10, rtol=0)


def test_training_lowers_both_losses():
    flow, zoo, classes, pool = small_flow(torch.float32)
    fit_prior(flow, zoo, classes, pool, 3, 0)
    imitation = fit_flow_matching(flow, zoo, classes, pool, 60, seed=0, shot=3, batch_size=6)
    assert sum(imitation[-10:]) < sum(imitation[:10])
    queries = fit_queries(flow, pool, 40, seed=0, shot=3, queries=2, tasks=2)
    assert sum(queries[-10:]) < sum(queries[:10])


def test_sampling_is_repeatable_and_splits_into_body_and_head():
    flow, _, _, pool = small_flow()
    support = pool[None, :10, :5].flatten(1, 2)
    first, again = (flow.sample(support, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (1, flow.model.layout.size)
    body, rows, bias = split_head(flow.model, first)
    assert torch.equal(torch.cat([body, rows.flatten(1), bias], dim=1), first)
