"""Label vectors and the support encoder: what they promise about order, exactly."""

import pytest
import torch

from flownlib.extensions.caml import SupportEncoder, elmes, random_labels


@pytest.mark.parametrize("n", [2, 5, 10])
def test_elmes_is_a_regular_simplex(n):
    e = elmes(n, torch.float64)
    gram = torch.full((n, n), -1 / (n - 1), dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(e @ e.T, gram, atol=1e-12) and torch.allclose(
        e.sum(0), torch.zeros(n, dtype=torch.float64), atol=1e-12
    )


def test_one_class_needs_no_label():
    with pytest.raises(ValueError, match="at least two classes, not 1"):
        elmes(1)


def test_labels_are_dealt_at_random_and_repeatably():
    one, two = (random_labels(50, 5, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two) and len({tuple(deal.argmax(1).tolist()) for deal in one}) > 20
    assert torch.allclose(one @ one.transpose(1, 2), (elmes(5) @ elmes(5).T).expand(50, -1, -1), atol=1e-6)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SupportEncoder(8, 4, width=16, heads=2).double().eval()


def test_support_order_does_not_matter_and_classes_keep_their_contexts(encoder):
    support, labels = torch.randn(3, 12, 8, dtype=torch.float64), random_labels(3, 4).double()
    y, grouped = encoder(support, labels), support.unflatten(1, (4, 3))
    within, between = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    assert torch.allclose(encoder(grouped[:, :, within].flatten(1, 2), labels), y)
    assert torch.allclose(encoder(grouped[:, between].flatten(1, 2), labels[:, between]), y[:, between])
    # a negative control: with the label vectors left behind it is another question
    assert not torch.allclose(encoder(grouped[:, between].flatten(1, 2), labels), y[:, between], atol=1e-3)


def test_a_class_context_depends_on_the_other_classes(encoder):
    support, labels = torch.randn(1, 8, 8, dtype=torch.float64), random_labels(1, 4).double()
    changed = support.clone()
    changed[:, 6:] += 1
    assert not torch.allclose(encoder(support, labels)[:, 0], encoder(changed, labels)[:, 0], atol=1e-4)


def test_torchvision_features_look_through_a_headless_model_and_say_when_its_weights_cannot_be_had(monkeypatch):
    from urllib.error import URLError

    import torchvision

    from flownlib.extensions.backbone import penultimate, torchvision_features

    get_model = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: get_model(name, weights=None))
    images = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = torchvision_features("resnet18", images, dim=4)
    assert penultimate(features.model, images[:2]).shape == (2, 512)
    found = features.features(images)
    assert found.shape == (12, 4) and torch.allclose(found.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(features.features(images[[5]]), found[[5]], atol=1e-3)

    def offline(name, weights):
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(ValueError, match="the weights of resnet18 could not be downloaded"):
        torchvision_features("resnet18", images, dim=4)
