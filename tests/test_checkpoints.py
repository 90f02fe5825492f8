"""Checkpoints from elsewhere in, state dicts out, and one clear sentence for every odd file."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from flownlib.extensions.checkpoints import (
    CheckpointError,
    export_checkpoints,
    import_checkpoints,
    read_state_dict,
    state_dict_of,
    vector_of,
)
from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import cnn_medium, cnn_small, mlp
from flownlib.zoo import Zoo


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
    zoo = import_checkpoints(tmp_path, cnn_small())
    assert torch.equal(zoo.weights, weights) and zoo.table["step"].tolist() == [0, 2, 0, 2]
    assert zoo.table["test_accuracy"].tolist() == pytest.approx([0.0, 0.2, 1.0, 1.2])
    assert zoo.table["train_accuracy"].isna().tolist() == [True, False, True, False]
    assert zoo.table["seed"].nunique() == 2


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
        ("other names", r"is not a cnn_small: it has no tensor 'conv1.weight'\.$"),
        ("NaN", r"has a number that is not finite in 'conv2.bias'\.$"),
        ("truncated", r"is damaged or is not a checkpoint\.$"),
        ("truncated safetensors", r"is damaged or is not a checkpoint\.$"),
        ("pickle with code", r"holds more than tensors, and reading it could run code, so it is refused"),
        ("plain pickle", r"holds more than tensors, and reading it could run code, so it is refused"),
        ("no tensors", r"holds no named tensors\.$"),
        ("a list", r"holds no named tensors\.$"),
        ("empty file", r"is damaged or is not a checkpoint\.$"),
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
        read_state_dict(tmp_path / "nothing.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no checkpoint of a cnn_small"):
        import_checkpoints(tmp_path, cnn_small(), skip=True)


def test_order_stands_in_for_names_only_where_every_shape_agrees():
    weights, (state,) = states(1)
    renamed = {f"layer.{i}": tensor for i, tensor in enumerate(state.values())}
    assert torch.equal(vector_of(renamed, cnn_small(), "x.pt"), weights[0])
    swapped = dict(reversed(renamed.items()))
    with pytest.raises(CheckpointError, match="it has no tensor 'conv1.weight'"):
        vector_of(swapped, cnn_small(), "x.pt")


def test_a_zoo_of_a_module_is_loaded_with_its_model(tmp_path):
    model = ModuleClassifier("normed", (1, 28, 28), normed, ("1.*",))
    torch.save(model.module().state_dict(), tmp_path / "0.pt")
    zoo = import_checkpoints(tmp_path, model)
    zoo.save(tmp_path / "zoo")
    assert torch.equal(Zoo.load(tmp_path / "zoo", model).weights, zoo.weights)
    with pytest.raises(ValueError, match="is a zoo of 'normed'; give its model when you load it"):
        Zoo.load(tmp_path / "zoo")
