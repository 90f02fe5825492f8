"""Checkpoints, folders and modules that nobody chose: one sentence each or the right numbers, and nothing lost."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flownlib.extensions.checkpoints.folders import import_checkpoints
from flownlib.extensions.checkpoints.naming import Reader
from flownlib.extensions.checkpoints.writing import export_checkpoints
from flownlib.extensions.modules import ModuleClassifier
from flownlib.zoo import Zoo

FEW = settings(max_examples=60, deadline=None, derandomize=True)
INTERNAL = re.compile(r"Traceback|File \"|line \d+|object at 0x|\n")


def read_weights(path, model, **how) -> torch.Tensor:
    """One checkpoint's weights, float32 [p]; `how` are the fields of Reader."""
    return Reader(model, **how).vector(path)


class Plain(torch.nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.flatten(1))))


PLAIN = ModuleClassifier("plain", (1, 2, 2), Plain)
STATE = PLAIN.layout.state_dict(torch.linspace(-1, 1, PLAIN.layout.size))
VECTOR = PLAIN.layout.flatten(STATE)


def outcome(call):
    """What a call returns, or None where it refuses in one sentence."""
    try:
        return call()
    except ValueError as error:
        assert str(error) and not INTERNAL.search(str(error)) and len(str(error)) < 1300, str(error)
        return None


def read(content: bytes, name: str):
    with TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(content)
        Path(folder, "fine_step_1.safetensors").write_bytes(FILES["safetensors"])
        assert len(import_checkpoints(folder, PLAIN, skip=True, run="fine|.")) >= 1  # the other one always comes
        return outcome(lambda: read_weights(Path(folder, name), PLAIN))


def written(save) -> bytes:
    with TemporaryDirectory() as folder:
        save(Path(folder, "a"))
        return Path(folder, "a").read_bytes()


FILES = {
    "safetensors": written(lambda path: save_file(STATE, path)),
    "zip": written(lambda path: torch.save({"state_dict": STATE, "epoch": 3}, path)),
    "old": written(lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False)),
}
SUFFIX = st.sampled_from([".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
HEADS = st.sampled_from(
    [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"<", b"\x08\0\0\0\0\0\0\0{", b"version https://git-lfs", b"GGUF"]
)


@FEW
@given(HEADS, st.binary(max_size=200), SUFFIX)
def test_random_bytes_are_refused(head, content, suffix):
    assert read(head + content, f"x{suffix}") is None


@FEW
@given(st.sampled_from(sorted(FILES)), st.floats(0, 1), SUFFIX)
def test_files_that_are_cut_short_are_refused(kind, share, suffix):
    whole = FILES[kind]
    assert read(whole[: int(share * (len(whole) - 1))], f"x{suffix}") is None


@FEW
@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), min_size=1, max_size=4), SUFFIX
)
def test_flipped_bits_give_a_sentence_or_a_whole_network(kind, flips, suffix):
    content = bytearray(FILES[kind])
    for place, bit in flips:
        content[int(place * len(content))] ^= 1 << bit
    found = read(bytes(content), f"x{suffix}")
    assert found is None or (found.shape == VECTOR.shape and bool(found.isfinite().all()))


ODD = st.sampled_from(
    [
        torch.zeros(3, 4).to_sparse(),
        torch.zeros(3, 4, device="meta"),
        torch.zeros(3, 4, dtype=torch.int64),
        torch.zeros(3, 4, dtype=torch.complex64),
        torch.full((3, 4), torch.nan),
        torch.zeros(4, 3),
        torch.zeros(()),
        torch.zeros(0),
        "text",
        None,
        3,
        [torch.zeros(3)],
    ]
)
NAMES = st.sampled_from([*STATE, "model", "module.a.weight", "model.b.bias", "_orig_mod", "n\nl", "", "c.weight", "é.²"])
TREES = st.recursive(ODD, lambda inner: st.dictionaries(NAMES | st.integers(0, 3), inner, max_size=4), max_leaves=8)


@pytest.mark.filterwarnings("ignore:Sparse")
@FEW
@given(TREES)
def test_odd_contents_are_refused(content):
    assert read(written(lambda path: torch.save(content, path)), "x.pt") is None


@pytest.mark.filterwarnings("ignore:Sparse")
@FEW
@given(st.sampled_from(sorted(STATE)), ODD, st.sampled_from(["", "module.", "model.", "_orig_mod.module."]), st.booleans())
def test_one_odd_tensor_in_a_good_file_is_refused(name, odd, prefix, wrapped):
    state = {f"{prefix}{key}": value for key, value in (STATE | {name: odd}).items()}
    found = read(written(lambda path: torch.save({"net": state} if wrapped else state, path)), "x.pt")
    zeros = isinstance(odd, torch.Tensor) and odd.shape == STATE[name].shape and odd.layout == torch.strided
    assert found is None or (zeros and odd.device.type == "cpu" and odd.dtype == torch.float32)


WRAPPING = st.lists(st.sampled_from(["module.", "model.", "_orig_mod.", "_forward_module."]), max_size=3).map("".join)
KEYS = st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=8), max_size=3)


@FEW
@given(WRAPPING, KEYS, st.sampled_from(["", "_orig_mod.", "module."]))
def test_a_good_network_is_found_under_any_key_and_documented_prefix(prefix, keys, inside):
    content = {prefix + name.replace("a.", f"a.{inside}"): tensor for name, tensor in STATE.items()}
    for key in keys:
        content = {"step": 3, key: content}
    assert torch.equal(read(written(lambda path: torch.save(content, path)), "x.pt"), VECTOR)


PART = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=12)
PATHS = st.lists(st.one_of(PART, st.sampled_from(["run_1", "run_10", "checkpoint-500", "epoch=1.ckpt", "step_3"])), max_size=3)
FILE = st.one_of(PART, st.sampled_from(["epoch=1-val_loss=0.5", "step_99999999999999999999", "best", "lr1²3", "checkpoint-٣"]))


@FEW
@given(st.lists(st.tuples(PATHS, FILE), min_size=1, max_size=4))
def test_odd_names_of_files_and_folders(names):
    with TemporaryDirectory() as folder:
        count = 0
        for parts, name in names:
            place = Path(folder, "in", *(part for part in parts if part not in (".", "..")))
            try:
                place.mkdir(parents=True, exist_ok=True)
                Path(place, f"{name}.pt").write_bytes(FILES["zip"])
            except (OSError, ValueError):
                continue
        count = sum(1 for path in Path(folder, "in").rglob("*.pt") if path.is_file())
        zoo = outcome(lambda: import_checkpoints(Path(folder, "in"), PLAIN))
        if zoo is None:
            return
        assert len(zoo) <= count and torch.equal(zoo.weights, VECTOR.expand(len(zoo), -1))
        assert zoo.table.groupby("run")["seed"].nunique().eq(1).all()
        files = outcome(lambda: export_checkpoints(zoo, Path(folder, "out")))
        assert len(set(files)) == len(zoo) and all(file.is_file() for file in files)


STEPS = st.one_of(st.integers(0, 3), st.just(float("nan")), st.just(2.5))
TASKS = st.one_of(PART, st.sampled_from(["latin", "Latin", "..", "../x", "a/b", "", "x" * 300, "a\0b", "con:"]))


@FEW
@given(st.lists(st.tuples(TASKS, st.integers(0, 2), STEPS), min_size=1, max_size=6), st.integers(0, 1000))
def test_export_and_back(rows, seed):
    weights = torch.randn(len(rows), VECTOR.numel(), generator=torch.Generator().manual_seed(seed))
    zoo = Zoo(weights, pd.DataFrame(rows, columns=["task", "seed", "step"]), PLAIN)
    with TemporaryDirectory() as folder:
        kept = Path(folder, "out", "kept.txt")
        kept.parent.mkdir()
        kept.write_text("mine")
        files = outcome(lambda: export_checkpoints(zoo, kept.parent))
        assert [path for path in Path(folder).iterdir()] == [kept.parent] and kept.read_text() == "mine"
        if files is None:
            assert list(kept.parent.iterdir()) == [kept]  # refused before anything was written
            return
        assert len(set(files)) == len(rows)
        for file, row in zip(files, weights, strict=True):
            assert torch.equal(read_weights(file, PLAIN), row)
            state = Plain()
            state.load_state_dict(PLAIN.state_dict(row), strict=True)


INDEX = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["../x", "part", "/etc/passwd", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weight_map", *STATE]), inner, max_size=4),
    max_leaves=8,
)


@FEW
@given(INDEX)
def test_odd_indices_are_refused(content):
    with TemporaryDirectory() as folder:
        Path(folder, "part").write_bytes(FILES["safetensors"])
        Path(folder, "model.safetensors.index.json").write_text(json.dumps(content))
        found = outcome(lambda: import_checkpoints(folder, PLAIN))
        assert found is None or torch.equal(found.weights[0], VECTOR)


LAYERS = st.sampled_from(
    [
        torch.nn.ReLU,
        torch.nn.Tanh,
        torch.nn.Dropout,
        lambda: torch.nn.Linear(4, 4),
        lambda: torch.nn.LazyLinear(4),
        lambda: torch.nn.Linear(5, 4),
        lambda: torch.nn.Linear(4, 4).double(),
        lambda: torch.nn.BatchNorm1d(4),
        lambda: torch.nn.BatchNorm1d(4, track_running_stats=False),
        lambda: torch.nn.GRU(4, 4, batch_first=True),
        lambda: torch.nn.MultiheadAttention(4, 2),
        lambda: torch.nn.Linear(4, 4, device="meta"),
        lambda: torch.nn.Embedding(3, 4),
        lambda: torch.nn.Softmax(0),
        lambda: torch.nn.AlphaDropout(),
        lambda: torch.nn.ReLU(inplace=True),
        lambda: torch.nn.Bilinear(4, 4, 4),
    ]
)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(st.lists(LAYERS, min_size=1, max_size=4), st.booleans(), st.sampled_from([("*",), ("1.*",), ("nothing",), "1.*"]))
def test_odd_modules_run_as_they_are_or_are_refused(layers, statistics, patterns):
    def build():
        return torch.nn.Sequential(torch.nn.Flatten(), *(layer() for layer in layers))

    model = outcome(lambda: ModuleClassifier("odd", (1, 2, 2), build, patterns, statistics))
    if model is None:
        return
    x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    vector = model.start() * 1.5
    module = model.module()
    module.load_state_dict(model.state_dict(vector), strict=True)
    with torch.no_grad():
        assert torch.allclose(module.float()(x.clone()), model.forward(vector.repeat(2, 1), x)[1], atol=1e-4)
