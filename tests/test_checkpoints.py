"""Checkpoints from elsewhere in, state dicts out, and one clear sentence for every odd file."""

import json
import math
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import PurePath

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from flownlib.extensions.checkpoints.folders import import_checkpoints, run_and_step
from flownlib.extensions.checkpoints.naming import Reader
from flownlib.extensions.checkpoints.reading import CheckpointError, tensor_maps
from flownlib.extensions.checkpoints.writing import export_checkpoints, state_dict_of
from flownlib.extensions.modules import ModuleClassifier
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.networks import cnn_medium, cnn_small, mlp
from flownlib.zoo import Zoo


def read_weights(path, model, **how) -> torch.Tensor:
    """One checkpoint's weights, float32 [p]; `how` are the fields of Reader."""
    return Reader(model, **how).vector(path)


def states(count, model=None):
    model = model or cnn_small()
    weights = model.initialise(count, torch.Generator().manual_seed(0))
    return weights, [model.layout.state_dict(vector) for vector in weights]


def normed() -> torch.nn.Module:
    """A module with running statistics and an integer buffer."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 10))


def test_every_way_of_writing_a_checkpoint_gives_the_same_zoo(tmp_path):
    weights, (a, b, c, d) = states(4)
    (tmp_path / "run_1").mkdir(), (tmp_path / "run_2").mkdir()
    torch.save(a, tmp_path / "run_1" / "epoch_9.pt")
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in b.items()}, "epoch": 10}, tmp_path / "run_1" / "epoch_10.ckpt"
    )
    save_file(c, tmp_path / "run_2" / "epoch_9.safetensors")
    torch.save({"model": {f"_orig_mod.module.{name}": t for name, t in d.items()}}, tmp_path / "run_2" / "epoch_10.pth")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    zoo = import_checkpoints(tmp_path, cnn_small(), task="latin")
    assert torch.equal(zoo.weights, weights)
    assert zoo.table["step"].tolist() == [9, 10, 9, 10] and zoo.table["seed"].tolist() == [0, 0, 1, 1]
    assert zoo.table["run"].tolist() == ["run_1", "run_1", "run_2", "run_2"] and zoo.tasks == ["latin"]
    train, held_out = zoo.split(1)
    assert set(train.table["run"]) == {"run_1"} and set(held_out.table["run"]) == {"run_2"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    weights, (state,) = states(1)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "a.pt")
    zoo = import_checkpoints(tmp_path, cnn_small())
    assert zoo.weights.dtype == torch.float32 and torch.equal(zoo.weights, weights.to(dtype).float())


def test_a_module_with_buffers_comes_and_goes_whole(tmp_path):
    model = ModuleClassifier("normed", (1, 28, 28), normed, statistics=True)
    modules = [normed() for _ in range(3)]
    for i, module in enumerate(modules):
        module(torch.randn(20, 784) + i)  # gives it running statistics of its own
        torch.save(module.state_dict(), tmp_path / f"{i}.pt")
    zoo = import_checkpoints(tmp_path, model)
    x = torch.randn(5, 1, 28, 28)
    for module, logits, vector in zip(modules, model.forward(zoo.weights, x), zoo.weights, strict=True):
        assert torch.allclose(module.eval()(x), logits, atol=1e-5)
        normed().load_state_dict(state_dict_of(model, vector), strict=True)


def test_any_vector_leaves_as_a_state_dict_that_loads_strictly(tmp_path):
    weights, _ = states(2)
    generated = weights.mean(0)
    module = cnn_small().module()
    module.load_state_dict(state_dict_of(cnn_small(), generated), strict=True)
    x = torch.randn(4, 1, 28, 28)
    assert torch.allclose(module(x), cnn_small().forward(generated[None], x)[0], atol=1e-6)


def test_exported_zoos_come_back(tmp_path):
    weights, _ = states(3)
    torch.save(dict(enumerate([])), tmp_path / "empty.txt")
    for i, vector in enumerate(weights):
        torch.save(cnn_small().layout.state_dict(vector), tmp_path / f"{i}.pt")
    zoo = import_checkpoints(tmp_path, cnn_small())
    files = export_checkpoints(zoo, tmp_path / "out")
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    assert torch.equal(import_checkpoints(tmp_path / "out", cnn_small()).weights, weights)


def test_the_public_model_zoos_format(tmp_path):
    """A folder a run, checkpoint_000002/checkpoints beside an optimizer's state, and result.json with one object a line."""
    weights, saved = states(4)
    for run in range(2):
        trial = tmp_path / f"NN_tune_trainable_0000{run}_{run}_seed={run}_2021-09-01_17-23-45"
        for epoch in (0, 2):
            place = trial / f"checkpoint_{epoch:06d}"
            place.mkdir(parents=True)
            # public zoos name their layers by position in a list with dropouts and activations
            names = [f"module_list.{layer}.{kind}" for layer in (0, 3, 6, 9, 11) for kind in ("weight", "bias")]
            torch.save(dict(zip(names, saved[2 * run + epoch // 2].values(), strict=True)), place / "checkpoints")
            torch.save({"state": {}, "param_groups": [{"lr": 1e-3}]}, place / "optimizer")
        lines = [
            {
                "training_iteration": epoch,
                "train_acc": -999 if epoch == 0 else 0.5,
                "train_loss": 1.0,
                "test_acc": 0.1 * epoch + run,
            }
            for epoch in range(3)
        ]
        (trial / "result.json").write_text("\n".join(json.dumps(line) for line in lines))
        (trial / "params.json").write_text(json.dumps({"seed": run}))
    rename = dict(zip(names, cnn_small().layout.names, strict=True))
    with pytest.raises(CheckpointError, match=r"no tensor 'conv1.weight'; it holds .*module_list.0.weight.*rename="):
        import_checkpoints(tmp_path, cnn_small())
    zoo = import_checkpoints(tmp_path, cnn_small(), rename=rename)
    assert torch.equal(zoo.weights, weights) and zoo.table["step"].tolist() == [0, 2, 0, 2]
    assert zoo.table["test_accuracy"].tolist() == pytest.approx([0.0, 0.2, 1.0, 1.2])
    assert zoo.table["train_accuracy"].isna().tolist() == [True, False, True, False]
    assert zoo.table["seed"].nunique() == 2
    one = import_checkpoints(trial, cnn_small(), rename=rename)  # one trial is one run
    assert one.table[["run", "seed", "step"]].values.tolist() == [[".", 0, 0], [".", 0, 2]]
    assert one.table["test_accuracy"].tolist() == pytest.approx([1.0, 1.2])
    (trial / "result.json").write_bytes(b'[1]\n{"training_iteration": 2, "test_acc": "0.9", "test_loss": 1}\n\xff{')
    odd = import_checkpoints(trial, cnn_small(), rename=rename)
    assert odd.table["test_loss"].tolist()[1] == 1 and odd.table["test_accuracy"].isna().all()


class Code:
    """Unpickling this would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("pickled-code-ran",)


def odd_folder(kind, folder):
    _, (state,) = states(1)
    save_file(state, folder / "0_fine.safetensors")
    path = folder / "1_odd.pt"
    if kind == "mixed architectures":
        torch.save(cnn_medium().module().state_dict(), path)
    elif kind == "other names":
        torch.save(mlp().module().state_dict(), path)
    elif kind == "NaN":
        torch.save(state | {"conv2.bias": torch.full((6,), float("nan"))}, path)
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "truncated safetensors":
        path = folder / "1_odd.safetensors"
        path.write_bytes((folder / "0_fine.safetensors").read_bytes()[:1000])
    elif kind == "pickle with code":
        torch.save({"state_dict": state, "callback": Code()}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Code()))
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "a list":
        torch.save([torch.zeros(3)], path)
    elif kind == "empty file":
        path.touch()
    return path


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("mixed architectures", r"is not a cnn_small: its 'conv1.weight' is 16 × 3 × 3 × 3, not 8 × 1 × 5 × 5\.$"),
        ("other names", r"is not a cnn_small: it has no tensor 'conv1.weight'; it holds 'the file itself' \(.*\), where key="),
        ("NaN", r"has a number that is not finite in 'conv2.bias'\.$"),
        ("truncated", r"is damaged or is not a checkpoint: it is cut short, or bytes were changed\.$"),
        ("truncated safetensors", r"is damaged or is not a checkpoint: it is cut short, or bytes were changed\.$"),
        ("pickle with code", r"holds more than tensors, and reading it could run code, so it is refused"),
        ("plain pickle", r"holds more than tensors, and reading it could run code, so it is refused"),
        ("no tensors", r"holds no named tensors, only: epoch\.$"),
        ("a list", r"holds no named tensors, only: list\.$"),
        ("empty file", r"is empty, and no checkpoint\.$"),
    ],
)
def test_odd_files_get_one_sentence_that_names_them(tmp_path, monkeypatch, caplog, kind, sentence):
    monkeypatch.chdir(tmp_path)
    path = odd_folder(kind, tmp_path)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        import_checkpoints(tmp_path, cnn_small())
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert not (tmp_path / "pickled-code-ran").exists()
    zoo = import_checkpoints(tmp_path, cnn_small(), skip=True)
    assert len(zoo) == 1 and f"left out: {path}" in caplog.text


def test_folders_without_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoints \(.safetensors"):
        import_checkpoints(tmp_path, cnn_small())
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        import_checkpoints(tmp_path / "nowhere", cnn_small())
    with pytest.raises(CheckpointError, match="nothing.pt does not exist"):
        tensor_maps(tmp_path / "nothing.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no checkpoint of a cnn_small"):
        import_checkpoints(tmp_path, cnn_small(), skip=True)


class Plain(torch.nn.Module):
    """Two layers whose names hold no documented prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(12, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.flatten(1))))


class Wrapped(torch.nn.Module):
    """The model's own names begin with a documented prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()

    def forward(self, x):
        return self.model(x)


PLAIN = ModuleClassifier("plain", (3, 2, 2), Plain)
STATE = Plain().state_dict()
VECTOR = PLAIN.layout.flatten(STATE)


def prefixed(prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"step": 1, "model_state": STATE},
        {"module": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        {"params_ema": STATE},
        {"model": {"width": 6}, "net": STATE},
        {"a": {"b": {"c": STATE}}},
        {"state_dict": prefixed("model.") | {"criterion.pos_weight": torch.tensor(3.2)}},
        prefixed("module.") | {"n_averaged": torch.tensor(5)},
        prefixed("module._orig_mod.model."),
        {name.replace("a.", "a._orig_mod."): tensor for name, tensor in STATE.items()},
        {name.replace("a.", "a.module."): tensor for name, tensor in prefixed("_orig_mod.").items()},
        {"model": STATE, "ema": {name: tensor.clone() for name, tensor in STATE.items()}},
    ],
)
def test_whichever_naming_fits_wins(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt", PLAIN)
    assert torch.equal(found, VECTOR) and not found.requires_grad


def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    own = Wrapped()
    save_file(own.state_dict(), tmp_path / "a.safetensors")
    for patterns in (("*",), ("model.b.*",)):
        model = ModuleClassifier("own", (3, 2, 2), lambda: own, patterns)
        assert torch.equal(read_weights(tmp_path / "a.safetensors", model), model.layout.flatten(own.state_dict()))


def test_what_fits_twice_is_asked_about(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "model_ema": other, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"several networks that fit; choose one of key='model', key='model_ema'\.$"):
        read_weights(tmp_path / "a.pt", PLAIN)
    assert torch.equal(read_weights(tmp_path / "a.pt", PLAIN, key="model_ema"), VECTOR + 1)
    assert tensor_maps(tmp_path / "a.pt")["model"].keys() == STATE.keys()
    with pytest.raises(CheckpointError, match=r"no tensors under 'ema'; it holds 'model' \(a.weight, a.bias, b.weight, …\)"):
        read_weights(tmp_path / "a.pt", PLAIN, key="ema")
    torch.save(prefixed("model.") | {f"module.{name}": tensor for name, tensor in other.items()}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="key='module', key='model'"):
        read_weights(tmp_path / "b.pt", PLAIN)
    assert torch.equal(read_weights(tmp_path / "b.pt", PLAIN, key="module"), VECTOR + 1)


def test_more_tensors_than_the_model_are_refused_unless_asked_for(tmp_path):
    torch.save(STATE | {"c.weight": torch.zeros(4, 4)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not a plain: it has more tensors than the model, c.weight; if a part"):
        read_weights(tmp_path / "a.pt", PLAIN)
    assert torch.equal(read_weights(tmp_path / "a.pt", PLAIN, subset=True), VECTOR)
    names = {name: f"layer.{i}" for i, name in enumerate(STATE)}
    torch.save({names[name]: tensor for name, tensor in STATE.items()}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="it has no tensor 'a.weight'"):  # shapes and order say nothing
        read_weights(tmp_path / "b.pt", PLAIN)
    assert torch.equal(read_weights(tmp_path / "b.pt", PLAIN, rename={new: name for name, new in names.items()}), VECTOR)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to("meta"), "meta device"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to(torch.int8), "torch.int8 numbers"),
        (lambda t: t.to(torch.complex64), "torch.complex64 numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("patterns", [("*",), ("b.*",)])
def test_odd_tensors_never_stop_the_others(tmp_path, caplog, change, words, patterns):
    model = ModuleClassifier("plain", (3, 2, 2), lambda: restored(Plain(), STATE), patterns)
    torch.save(STATE, tmp_path / "0.pt")
    torch.save(STATE | {"a.weight": change(STATE["a.weight"])}, tmp_path / "1.pt")
    assert len(import_checkpoints(tmp_path, model, skip=True)) == 1
    assert "1.pt" in caplog.text and (words in caplog.text or "another 'a.weight'" in caplog.text)


def restored(module, state):
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:65\n", "Git LFS pointer"),
        ("page.pth", b"\n<!DOCTYPE html><html>404</html>", "web page"),
        ("._run.pt", bytes.fromhex("00051607") + bytes(100), "macOS sidecar"),
        ("raw.bin", bytes(range(64)), "begins neither as torch.save's files do nor"),
        ("a.safetensors", b"\x1f\x8b" + bytes(30), "compressed by gzip"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        tensor_maps(tmp_path / name)


def test_files_are_known_by_content_and_programs_are_refused(tmp_path):
    save_file(STATE, tmp_path / "renamed.pt")
    torch.save(STATE, tmp_path / "renamed.safetensors")
    assert all(torch.equal(read_weights(tmp_path / f"renamed.{kind}", PLAIN), VECTOR) for kind in ("pt", "safetensors"))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/code/__torch__.py", "")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "")
    for name, words in (("script.pt", "a TorchScript program"), ("other.pt", "a zip archive without a checkpoint")):
        with pytest.raises(CheckpointError, match=words):
            tensor_maps(tmp_path / name)


def test_parts_with_an_index_are_joined(tmp_path, caplog):
    run = tmp_path / "checkpoint-500"
    run.mkdir()
    names = list(STATE)
    files = {name: f"model-0000{1 + i // 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: STATE[name] for name in names if files[name] == file}, run / file)
    torch.save({"state": {}}, run / "optimizer.pt")
    index = run / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    zoo = import_checkpoints(tmp_path, PLAIN)
    assert torch.equal(zoo.weights[0], VECTOR) and zoo.table[["run", "step"]].values.tolist() == [[".", 500]]
    assert "optimizer.pt, which is the training's state" in caplog.text and "00001-of" not in caplog.text
    for text, words in (("{", "is no index"), ('{"weight_map": {"a": "../b"}}', "outside of its own folder")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            import_checkpoints(tmp_path, PLAIN)
    index.unlink()
    with pytest.raises(CheckpointError, match="one part of a checkpoint whose index is missing"):
        import_checkpoints(tmp_path, PLAIN)


@pytest.mark.parametrize(
    "file, run, step",
    [
        ("epoch=0-val_loss=1.90.ckpt", ".", 0),
        ("b_epoch_10.pt", "b", 10),
        ("a_epoch_10.pt", "a.pt", 10),
        ("a/epoch3_5c106cde.pth", "a", 3),
        ("a/epoch=1-step=200.ckpt", "a", 200),
        ("a/e9_2024-06-01.pt", "a", None),
        ("a/step5c106cde.pt", "a", None),
        ("a/timestep_5.pt", "a", None),
        ("a/step_1_step_2.pt", "a", None),
        ("lr1²3.pt", "lr1²3", None),
        ("a.pt", "a.pt", None),
        ("7.pt", "7", None),
        ("hf/checkpoint-500/model.safetensors", "hf", 500),
        ("checkpoint_000050/checkpoints", ".", 50),
        ("a/epoch=1.ckpt/global_step9/mp_rank_00_model_states.pt", "a", 9),
        ("lr_epoch_30/best.pt", "lr_epoch_30", None),
        ("epoch3_seed0.pt", "seed0", 3),
        ("net_epoch3-Seed=10-val0.5.pt", "net_Seed=10", 3),
        ("seed0_epoch3_fold2.pt", "seed0_fold2", 3),
        ("a/epoch3_seed1.pt", "a/seed1", 3),
        ("a/prune2_epoch3.pt", "a", 3),
    ],
)
def test_runs_and_steps_from_names(tmp_path, file, run, step):
    (tmp_path / "a").mkdir()
    assert run_and_step(PurePath(file), tmp_path) == (run, step)


def test_names_inside_the_folder_alone_make_the_order_and_nothing_is_left_out_unnamed(tmp_path, caplog):
    tables = []
    for place in (tmp_path / "z9" / "runs", tmp_path / "10_2"):
        for name in ("run_10/epoch_1.pt", "run_2/epoch_10.pt", "run_2/epoch_9.pt", "run_2/deep/best.pt", "x.pt"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            torch.save(STATE, place / name)
        (place / "run_2" / "result.json").write_bytes(b'{"note": "\xe9"}')
        (place / "run_2" / "weights.h5").touch()
        (place / "._x.pt").touch()
        (place / "last.ckpt").symlink_to("x.pt")
        (place / "elsewhere").symlink_to(tmp_path)
        (place / "gone.pt").symlink_to("nothing.pt")
        tables.append(import_checkpoints(place, PLAIN).table)
    assert tables[0].equals(tables[1])
    order = ["run_2/deep/best.pt", "run_2/epoch_9.pt", "run_2/epoch_10.pt", "run_10/epoch_1.pt", "x.pt"]
    assert tables[0]["file"].tolist() == order and tables[0]["seed"].tolist() == [0, 1, 1, 2, 3]
    assert tables[0]["step"].isna().tolist() == [True, False, False, False, True]
    for name in ("weights.h5", "._x.pt", "last.ckpt", "elsewhere", "gone.pt"):
        assert f"left out {name}" in caplog.text.replace("run_2/weights", "weights")
    assert caplog.text.count("have no step in their names") == 2 and "result.json" not in caplog.text


def test_the_caller_names_the_pattern_of_a_run(tmp_path):
    for name in ("b3_s0_i1", "b3_s0_i2", "b3_s1_i1"):
        torch.save(STATE, tmp_path / f"{name}.pt")
    zoo = import_checkpoints(tmp_path, PLAIN, run=r"_(s\d)_")
    assert zoo.table["run"].tolist() == ["s0", "s0", "s1"] and zoo.table["seed"].tolist() == [0, 0, 1]
    for pattern, words in (("seed", "does not occur in it"), ("(", "is not a regular expression")):
        with pytest.raises(CheckpointError, match=words):
            import_checkpoints(tmp_path, PLAIN, run=pattern)


def test_loose_files_of_several_runs_are_several_runs_or_refused(tmp_path):
    for name in ("epoch3_seed0", "epoch3_seed1", "epoch4_seed1"):
        torch.save(STATE, tmp_path / f"{name}.pt")
    table = import_checkpoints(tmp_path, PLAIN).table
    assert table[["run", "step", "seed"]].values.tolist() == [["seed0", 3, 0], ["seed1", 3, 1], ["seed1", 4, 1]]
    for name in ("step5-a", "step5-b"):
        torch.save(STATE, tmp_path / f"{name}.pt")
    with pytest.raises(CheckpointError, match=r'step5-b.pt and step5-a.pt are step 5 of one run by their names; .* run="…"'):
        import_checkpoints(tmp_path, PLAIN)
    assert import_checkpoints(tmp_path, PLAIN, run=r"seed\d|-[ab]").table["run"].nunique() == 4


@pytest.mark.parametrize(
    ("kept", "twin"),
    [
        ("model.safetensors", "pytorch_model.bin"),
        ("model.safetensors", "pytorch_model.bin.index.json"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("epoch_3.safetensors", "epoch_3.pt"),
    ],
)
def test_a_network_in_two_formats_is_one_row(tmp_path, caplog, kept, twin):
    save_file(STATE, tmp_path / kept)
    if twin.endswith(".json"):
        (tmp_path / twin).write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "pytorch_model-00001-of-00001.bin")}))
        twin_weights = tmp_path / "pytorch_model-00001-of-00001.bin"
    else:
        twin_weights = tmp_path / twin
    torch.save(STATE, twin_weights)
    (tmp_path / "other").mkdir()
    torch.save(STATE, tmp_path / "other" / "pytorch_model.bin")
    assert import_checkpoints(tmp_path, PLAIN).table["file"].tolist() == [kept, "other/pytorch_model.bin"]
    assert f"left out {twin}, which is by its name the same network as the safetensors beside it" in caplog.text


def test_what_lies_beside_a_removed_prefix_is_named(tmp_path, caplog):
    others = {f"loss{i}.weight": torch.zeros(1) for i in range(7)}
    torch.save({"state_dict": prefixed("model.") | others}, tmp_path / "a.ckpt")
    assert len(import_checkpoints(tmp_path, PLAIN)) == 1
    names = "loss0.weight, loss1.weight, loss2.weight, loss3.weight, loss4.weight and 2 more"
    assert f"a.ckpt: left aside what is no part of the network: {names}" in caplog.text


def test_export_writes_a_file_a_row_and_overwrites_nothing(tmp_path):
    weights = torch.randn(5, VECTOR.numel(), generator=torch.Generator().manual_seed(0))
    table = pd.DataFrame({"task": "flow", "seed": [0, 0, 0, 0, 1], "step": [0, 0, math.nan, math.nan, 3]})
    zoo = Zoo(weights, table, PLAIN)
    files = export_checkpoints(zoo, tmp_path / "out")
    names = [str(file.relative_to(tmp_path / "out" / "flow")) for file in files]
    assert names == [f"{n}.safetensors" for n in ("0/step_0_0", "0/step_0_1", "0/network_0", "0/network_1", "1/step_3")]
    assert all(torch.equal(read_weights(file, PLAIN), row) for file, row in zip(files, weights, strict=True))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert export_checkpoints(zoo, tmp_path / "out") == files  # the same again
    with pytest.raises(ValueError, match="is there already and is not overwritten; choose another folder"):
        export_checkpoints(zoo.with_weights(weights.flip(0)), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    for task in ("../elsewhere", "/etc", "", ".", "a/b", "a\nb", "x" * 300, "a\\b"):
        with pytest.raises(ValueError, match="is no name for a folder"):
            export_checkpoints(replace(zoo, table=table.assign(task=task)), tmp_path / "new")
    with pytest.raises(ValueError, match="capital letters only"):
        export_checkpoints(replace(zoo, table=table.assign(task=list("aAbcd"), seed=0, step=0)), tmp_path / "new")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "flow").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="outside of"):
        export_checkpoints(zoo, tmp_path / "link")
    assert not (tmp_path / "new").exists() and not list(tmp_path.rglob(".partial*"))


def test_a_zoo_of_a_module_is_loaded_with_its_model(tmp_path):
    model = ModuleClassifier("normed", (1, 28, 28), normed, ("1.*",))
    torch.save(model.module().state_dict(), tmp_path / "0.pt")
    zoo = import_checkpoints(tmp_path, model)
    save_artifact(tmp_path / "zoo", zoo.as_artifact())
    assert torch.equal(Zoo.from_artifact(load_artifact(tmp_path / "zoo"), model=model).weights, zoo.weights)
    with pytest.raises(ValueError, match="is a zoo of 'normed'; give its model when you load it"):
        Zoo.from_artifact(load_artifact(tmp_path / "zoo"))
