"""The compiled backend: exact against plain torch, the same statistics in float32, and an honest fallback."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import Classifier, Conv, Linear, cnn_embed, cnn_medium, cnn_small, mlp
from flownlib.scoring import Split, logits_of, score
from flownlib.speed import backends, lanes
from flownlib.speed.loops import train_many, train_one
from flownlib.speed.plan import Training, initial_weights, minibatch_orders
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes

MODELS = [
    cnn_small(),
    cnn_small(3),
    cnn_small(strided=False),
    cnn_small(3, False),
    cnn_medium(),
    cnn_medium(1),
    cnn_embed(),
    mlp(),
    mlp((20, 12)),
]
needs_compiler = pytest.mark.skipif(lanes.compiler() is None, reason="there is no C++ compiler")


def images(model, count=100, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, *model.image_shape, generator=generator, dtype=dtype)
    return Split(x, torch.randint(model.num_classes, (count,), generator=generator))


@pytest.fixture
def fresh_choice():
    """Forget which kernels there are, before and after."""
    for forget in (backends.why_not_lanes, lanes.kernel):
        forget.cache_clear()
    yield
    for forget in (backends.why_not_lanes, lanes.kernel):
        forget.cache_clear()


def trained(model, data, orders, backend, rate=3e-3, **options):
    starts = initial_weights(model, range(3), data.x.dtype)
    return train_many(model, starts, data, orders, rate, backend=backend, **options)[-1]


@pytest.mark.parametrize("backend", [pytest.param("lanes", marks=needs_compiler), "torch"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_both_backends_train_as_plain_torch_does(model, shared, backend):
    data, training = images(model), Training(1, 14)  # 14 is no multiple of the samples that go through together
    orders = minibatch_orders(range(1 if shared else 3), len(data), training)
    starts = initial_weights(model, range(3), torch.float64)
    together = trained(model, data, orders, backend, weight_decay=1e-3)
    alone = [train_one(model, starts[i], data, orders[0 if shared else i], 3e-3, 1e-3) for i in range(3)]
    assert (together - torch.stack(alone)).abs().max() < 1e-12
    control = train_one(model, starts[0], data, orders[0].flip(0), 3e-3, 1e-3)
    assert (control - alone[0]).abs().max() > 1e-3


@needs_compiler
def test_ties_in_max_pooling_go_where_torch_sends_them():
    model = cnn_small(strided=False)
    data = images(model)
    flat = Split(torch.where(data.x.abs() < 1.5, 0.25, data.x).round(decimals=1), data.y)  # large areas of one value
    orders = minibatch_orders(range(3), len(flat), Training(1, 20))
    assert (trained(model, flat, orders, "lanes") - trained(model, flat, orders, "torch")).abs().max() < 1e-12


@needs_compiler
@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "other"])
def test_every_vector_width_gives_the_same(capability, monkeypatch, fresh_choice):
    if capability == "AVX512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no 64-byte vectors")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = cnn_small()
    data = images(model)
    orders = minibatch_orders(range(3), len(data), Training(1, 20))
    assert lanes.kernel(model, torch.float64).lanes == {"AVX512": 8, "AVX2": 4, "other": 2}[capability]
    assert (trained(model, data, orders, "lanes") - trained(model, data, orders, "torch")).abs().max() < 1e-12


@needs_compiler
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_logits_are_those_of_plain_torch(model):
    weights, x = initial_weights(model, range(5), torch.float64), images(model, 21).x
    compiled = logits_of(model, weights, x, backend="lanes")
    assert compiled.shape == (5, 21, 10)
    assert (compiled - logits_of(model, weights, x, backend="torch")).abs().max() < 1e-12


@needs_compiler
def test_a_float32_zoo_has_the_same_statistics_from_both_backends():
    """Rounding differs, and ReLU amplifies it, so single networks may part; nothing a reader looks at may."""
    model, task = cnn_small(), load_task("latin", SplitSizes(500, 100, 1000))
    orders, starts = minibatch_orders(range(48), 500, Training(4, 50)), initial_weights(model, range(48))
    lane, plain = (train_many(model, starts, task.train, orders, 3e-3, backend=name)[-1] for name in ("lanes", "torch"))
    exact = train_many(model, starts.double(), Split(task.train.x.double(), task.train.y), orders, 3e-3, backend="torch")[-1]
    errors = [(found - exact).abs().amax(1).median() for found in (lane, plain)]
    moved = (exact - starts).abs().amax(1).median()
    assert errors[0] < 1e-4 * moved and errors[0] < 4 * errors[1] + 1e-6
    a, b = (score(model, weights, task.test.x, task.test.y).accuracy for weights in (lane, plain))
    assert (a - b).abs().median() <= 0.001 and (a.mean() - b.mean()).abs() < 0.002
    assert (lane.norm(dim=1) - plain.norm(dim=1)).abs().median() < 1e-4
    assert (torch.pdist(lane).mean() - torch.pdist(plain).mean()).abs() < 1e-3
    other = train_many(model, starts, task.train, orders.flip(1), 3e-3, backend="lanes")[-1]
    assert (lane - other).abs().amax(1).median() > 0.01  # the control: another order is another network


@needs_compiler
def test_a_network_does_not_depend_on_its_neighbours():
    model, data = cnn_small(), images(cnn_small(), dtype=torch.float32)
    orders, starts = minibatch_orders(range(20), len(data), Training(2, 20)), initial_weights(model, range(20))
    many = train_many(model, starts, data, orders, 3e-3, backend="lanes")[-1]
    few = train_many(model, starts[17:19], data, orders[17:19], 3e-3, backend="lanes")[-1]
    assert torch.equal(many[17:19], few)


@pytest.mark.parametrize("backend", [pytest.param("lanes", marks=needs_compiler), "torch"])
def test_a_diverging_network_poisons_nobody(backend):
    model, data = cnn_small(), images(cnn_small(), dtype=torch.float32)
    orders, starts = minibatch_orders(range(6), len(data), Training(3, 20)), initial_weights(model, range(6))
    rates = torch.full((6,), 3e-3)
    calm = train_many(model, starts, data, orders, rates, backend=backend)[-1]
    rates[2] = 1e30
    wild = train_many(model, starts, data, orders, rates, backend=backend)[-1]
    others = [0, 1, 3, 4, 5]
    assert torch.equal(wild[others], calm[others]) and not wild[2].isfinite().all()


@needs_compiler
def test_nothing_leads_compiled_code_out_of_its_memory():
    model, data = cnn_small(), images(cnn_small(), dtype=torch.float32)
    orders = minibatch_orders(range(3), len(data), Training(1, 20))
    with pytest.raises(ValueError, match="labels must lie between 0 and 9, got 5 to 10"):
        trained(model, Split(data.x, torch.arange(100) % 6 + 5), orders, "lanes")
    with pytest.raises(ValueError, match="the images that minibatches name must lie between 0 and 49, got 0 to 99"):
        trained(model, Split(data.x[:50], data.y[:50]), orders, "lanes")
    with pytest.raises(ValueError, match=r"images must be .* of shape \(1, 28, 28\), not \(3, 1, 32, 32\)"):
        logits_of(model, initial_weights(model, range(4)), torch.zeros(3, 1, 32, 32), backend="lanes")


def test_without_a_compiler_plain_torch_takes_over_and_says_so(tmp_path, monkeypatch, caplog, fresh_choice):
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))
    monkeypatch.setattr(lanes, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert backends.choose("auto", cnn_small(), torch.float32) == "torch"
    assert "several times slower than compiled: there is no C++ compiler" in caplog.text
    with pytest.raises(ValueError, match="the compiled backend cannot be used: there is no C"):
        backends.choose("lanes", cnn_small(), torch.float32)


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch, fresh_choice):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such instruction' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(lanes.LanesError, match="could not compile lanes.cpp: no such instruction"):
        lanes.kernel(cnn_small(), torch.float32)
    assert not list(tmp_path.glob("lanes-*")) and not list(tmp_path.glob(".partial-*"))


def test_what_the_kernel_does_not_know_goes_to_torch(fresh_choice):
    padded = Classifier("padded", (1, 8, 8), (Conv(1, 2, 3), Conv(2, 2, 3, padding=1), Linear(72, 10)))
    own = ModuleClassifier("own", (1, 8, 8), lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    for model, reason in ((padded, "pads inside"), (own, "a torch module of its own")):
        assert backends.choose("auto", model, torch.float32) == "torch"
        with pytest.raises(ValueError, match=reason):
            backends.choose("lanes", model, torch.float32)
    assert backends.choose("auto", cnn_small(), torch.float16) == "torch"


def test_the_choice_can_be_made_by_environment_and_bad_names_are_refused(monkeypatch):
    monkeypatch.setenv("FLOWN_BACKEND", "torch")
    assert backends.choose("auto", cnn_small(), torch.float32) == "torch"
    with pytest.raises(ValueError, match="there is no backend 'cuda'; choose one of auto, lanes, torch"):
        backends.choose("cuda", cnn_small(), torch.float32)


def test_group_size_fits_the_cache_and_takes_all_on_a_gpu(monkeypatch):
    weights = torch.zeros(300, 2464)
    strided, pooled = (backends.group_size(cnn_small(strided=s), 50, weights) for s in (True, False))
    assert 1 <= pooled < strided <= 64
    assert backends.group_size(cnn_small(), 50, torch.zeros(300, 2464, device="meta")) == 300
    monkeypatch.setenv("FLOWN_GROUP", "5")
    assert backends.group_size(cnn_small(), 50, weights) == 5


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "truncated", "a flipped byte", "not a library", "no checksum"])
def test_a_damaged_library_is_built_again_and_never_loaded(tmp_path, monkeypatch, fresh_choice, damage):
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))
    model = mlp((3,))
    lanes.kernel(model, torch.float64)
    (library,) = tmp_path.glob("lanes-*.so")
    whole = library.read_bytes()
    half = len(whole) // 2
    broken = {"empty": b"", "truncated": whole[:half], "not a library": b"\x7fELF" * 500}
    broken["a flipped byte"] = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    library.unlink()  # this process has it open: what follows is another file
    if damage == "no checksum":
        library = library.with_name(library.name.rsplit("-", 1)[0] + ".so")
    library.write_bytes(broken.get(damage, whole))
    loaded, load = [], lanes.ctypes.CDLL
    monkeypatch.setattr(lanes.ctypes, "CDLL", lambda path: loaded.append(Path(path).read_bytes()) or load(path))
    lanes.kernel.cache_clear()
    kernel = lanes.kernel(model, torch.float64)
    assert loaded == [whole] and not list(tmp_path.glob(".partial-*"))
    weights, x = initial_weights(model, range(3), torch.float64), images(model, 5).x
    assert (kernel.logits(weights, x) - logits_of(model, weights, x, backend="torch")).abs().max() < 1e-12


@needs_compiler
def test_two_processes_build_at_once(tmp_path):
    code = "import torch; from flownlib import networks; from flownlib.speed.lanes import kernel; "
    code += "kernel(networks.mlp((2,)), torch.float32)"
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"FLOWN_CACHE": str(tmp_path)}) for _ in range(2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    for library in tmp_path.iterdir():
        assert library.name == lanes._named(library.name.rsplit("-", 1)[0], library)


@needs_compiler
def test_a_cache_that_cannot_be_written_means_plain_torch(tmp_path, monkeypatch, fresh_choice):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path / "file"))
    with pytest.raises(lanes.LanesError, match="the compiled kernel cannot be kept in"):
        lanes.kernel(mlp((2,)), torch.float32)
