"""Ground floor: layout, batched classifiers, intervals, profiles, cache."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from flownlib.harness import profiles
from flownlib.harness.cache import address, cached, load_artifact, save_artifact
from flownlib.networks import CLASSIFIERS, classifier, cnn_medium, cnn_small, mlp
from flownlib.scoring import score
from flownlib.statistics import clustered_interval, mean_interval, paired_difference, proportion_interval
from flownlib.weights import Artifact, ArtifactError, Layout

MODELS = [*CLASSIFIERS.values(), mlp()]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.name}-{model.image_shape[0]}")
def test_layout_is_the_modules_and_round_trips_exactly(model):
    state = model.module().state_dict()
    assert Layout.of(state) == model.layout
    vector = model.layout.flatten(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.layout.state_dict(vector).items())
    assert Layout.from_json(json.loads(json.dumps(model.layout.as_json()))) == model.layout
    assert model.layout.size == len(vector)


def test_parameter_counts_are_the_published_ones():
    assert cnn_small().layout.size == 2464
    assert cnn_small(channels=3).layout.size == 2864
    assert cnn_medium().layout.size == 10853


def test_layout_subset_and_bad_input():
    state = cnn_small().module().state_dict()
    assert Layout.of(state, ("fc2.*",)).names == ("fc2.weight", "fc2.bias")
    with pytest.raises(ValueError, match="no floating-point tensor matches"):
        Layout.of(state, ("head.*",))
    with pytest.raises(ValueError, match="this layout holds 2464 numbers"):
        cnn_small().layout.unflatten(torch.zeros(3, 10))
    with pytest.raises(ValueError, match="'conv1.weight' is missing"):
        cnn_small().layout.flatten({})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.name}-{model.image_shape[0]}")
@pytest.mark.parametrize("own_images", [False, True])
def test_batched_forward_equals_plain_modules(model, own_images):
    generator = torch.Generator().manual_seed(0)
    weights = model.initialise(3, generator, torch.float64)
    x = torch.randn(*([3] if own_images else []), 5, *model.image_shape, generator=generator, dtype=torch.float64)
    expected = []
    for i in range(3):
        module = model.module().double()
        module.load_state_dict(model.layout.state_dict(weights[i]), strict=True)
        expected.append(module(x[i] if own_images else x))
    assert (model.forward(weights, x) - torch.stack(expected)).abs().max() < 1e-12


def test_features_feed_the_head():
    model = cnn_small()
    weights = model.initialise(2, torch.Generator().manual_seed(0), torch.float64)
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    tensors = model.layout.unflatten(weights)
    logits = model.features(weights, x) @ tensors["fc2.weight"].transpose(1, 2) + tensors["fc2.bias"][:, None]
    assert torch.allclose(logits, model.forward(weights, x))


def test_initialisation_has_torchs_range():
    tensors = cnn_small().layout.unflatten(cnn_small().initialise(200, torch.Generator().manual_seed(0)))
    for name, fan_in in {"conv1.weight": 25, "conv2.bias": 200, "fc2.weight": 20}.items():
        assert tensors[name].abs().max() <= 1 / math.sqrt(fan_in)
        assert tensors[name].std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.05)


def test_score_counts_errors():
    model = cnn_small()
    weights = model.initialise(3, torch.Generator().manual_seed(0))
    x, y = torch.randn(120, 1, 28, 28), torch.randint(10, (120,))
    result = score(model, weights, x, y)
    predicted = torch.stack([model.forward(weights[i : i + 1], x)[0].argmax(-1) for i in range(3)])
    assert torch.equal(result.wrong, predicted != y)
    assert torch.allclose(result.accuracy, (predicted == y).float().mean(1))


def test_unknown_classifier_is_refused():
    with pytest.raises(ValueError, match="there is no classifier 'resnet'"):
        classifier("resnet")


def test_mean_interval_is_students_t():
    values = [0.91, 0.93, 0.92, 0.95]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    interval = mean_interval(values)
    assert (interval.value, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))
    assert paired_difference(values, [0.0] * 4) == interval
    assert mean_interval([1.0]).low == -math.inf
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])


def test_intervals_cover_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    hits = [interval.low <= 0 <= interval.high for interval in (mean_interval(rng.normal(size=5)) for _ in range(2000))]
    assert 0.935 < np.mean(hits) < 0.965


def test_clusters_count_once_and_proportions_stay_in_range():
    assert clustered_interval([1, 1, 1, 3], ["a", "a", "a", "b"]).value == 2
    assert proportion_interval(50, 50).high == 1
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        proportion_interval(3, 2)


def test_profiles_refuse_unknown_names_and_wrong_types(monkeypatch):
    monkeypatch.delenv("FLOWN_PROFILE", raising=False)
    assert profiles.load("smoke", {"epochs": 3}).epochs == 3
    assert profiles.load("smoke", {"learning_rate": 1}).learning_rate == 1.0
    for profile, overrides, message in [
        ("huge", {}, "there is no profile 'huge'"),
        ("smoke", {"epoch": 2}, "there is no setting 'epoch'"),
        ("smoke", {"epochs": "2"}, "setting 'epochs' takes a whole number from 1 to 100,000, not"),
        ("smoke", {"epochs": True}, "setting 'epochs' takes a whole number from 1 to 100,000, not"),
    ]:
        with pytest.raises(ValueError, match=message):
            profiles.load(profile, overrides)
    monkeypatch.setenv("FLOWN_PROFILE", "smoke")
    assert profiles.load("tutorial").profile == "smoke"


def artifact():
    return Artifact({"weights": torch.arange(6.0).view(2, 3)}, {"seed": 1})


def test_artifacts_round_trip(tmp_path):
    save_artifact(tmp_path / "a", artifact())
    loaded = load_artifact(tmp_path / "a")
    assert torch.equal(loaded.tensors["weights"], artifact().tensors["weights"])
    assert loaded.meta == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "meta", "missing"])
def test_a_damaged_artifact_is_refused_in_one_sentence_and_rebuilt(tmp_path, damage, caplog):
    name = address("stage", {"n": 1}, __name__)
    save_artifact(tmp_path / name, artifact())
    tensors = tmp_path / name / "tensors.safetensors"
    content = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(content[:-7])
    elif damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "meta":
        (tmp_path / name / "meta.json").write_text("{")
    else:
        tensors.unlink()
    with pytest.raises(ArtifactError) as error:
        load_artifact(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    rebuilt = cached("stage", {"n": 1}, artifact, root=tmp_path)
    assert torch.equal(rebuilt.tensors["weights"], artifact().tensors["weights"])
    assert "being rebuilt" in caplog.text
    assert load_artifact(tmp_path / name).meta == {"seed": 1}


def test_the_cache_distinguishes_settings_and_builds_once(tmp_path):
    built = []

    def build(n):
        built.append(n)
        return Artifact({"n": torch.tensor([n])})

    for n in (1, 2, 1):
        assert cached("stage", {"n": n}, lambda n=n: build(n), root=tmp_path).tensors["n"].item() == n
    assert built == [1, 2]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("stage", {}, interrupted, root=tmp_path)
    assert not list(tmp_path.iterdir())
