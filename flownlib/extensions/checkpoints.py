"""Checkpoints that anyone wrote → a zoo, and any weight vector → a state dict that the original class loads.

Files are untrusted: tensors are read, pickled code never runs.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import Model
from flownlib.zoo import Zoo

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
PUBLIC_NAME = "checkpoints"  # what the public model zoos (Schürholt et al. 2022) call the file in each checkpoint_000050/
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence that names the file."""


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of one checkpoint file, without wrappers such as {"state_dict": …} and without prefixes such as `module.`.

    Raises:
        CheckpointError: if the file is missing, damaged, holds no tensors, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it could run code, so it is refused; save only the state dict, "
            "best as safetensors."
        ) from None
    except Exception:  # whatever a parser may trip over in bytes that are no checkpoint
        raise CheckpointError(f"{path} is damaged or is not a checkpoint.") from None
    while isinstance(found, Mapping) and (
        inner := next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
    ):
        found = inner
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise CheckpointError(f"{path} holds no named tensors.")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _load_tensors(path: Path) -> object:
    """torch.load without unpickling, and without its remark on the pickle protocol."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def find_checkpoints(folder: Path | str) -> list[Path]:
    """All checkpoint files in a folder and its sub-folders, in the order of the numbers in their names.

    Raises:
        CheckpointError: if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    files = [path for path in folder.rglob("*") if path.is_file() and (path.suffix in SUFFIXES or path.name == PUBLIC_NAME)]
    if not files:
        raise CheckpointError(f"{folder} holds no checkpoints ({', '.join(SUFFIXES)}, or files called {PUBLIC_NAME}).")
    return sorted(files, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))][1:])


def vector_of(state: Mapping[str, Tensor], model: Model, path: Path | str) -> Tensor:
    """The state's weights as one float32 vector [p] in the model's layout.

    Names must agree; where none does, tensors of the same shapes in the same order are taken for the same network.

    Raises:
        CheckpointError: if a tensor is missing, has another shape, or is not finite.
    """
    layout = model.layout
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if not set(layout.names) & set(floats) and tuple(tuple(t.shape) for t in floats.values()) == layout.shapes:
        floats = dict(zip(layout.names, floats.values(), strict=True))
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in floats:
            raise CheckpointError(f"{path} is not a {model.name}: it has no tensor {name!r}.")
        if tuple(floats[name].shape) != shape:
            raise CheckpointError(
                f"{path} is not a {model.name}: its {name!r} is {_sizes(floats[name].shape)}, not {_sizes(shape)}."
            )
    vector = layout.join({name: tensor.float() for name, tensor in floats.items()})
    if not vector.isfinite().all():
        bad = next(name for name, tensor in layout.views(vector).items() if not tensor.isfinite().all())
        raise CheckpointError(f"{path} has a number that is not finite in {bad!r}.")
    return vector


def check_rest(state: Mapping[str, Tensor], model: Model, path: Path | str) -> None:
    """Refuse a checkpoint that differs from the model in what is not among its weights: they would not fit together.

    Raises:
        CheckpointError: naming the first tensor that differs.
    """
    if not isinstance(model, ModuleClassifier):
        return
    for name, ours in model.template.state_dict().items():
        if name in model.layout.names or not ours.is_floating_point() or name not in state:
            continue
        if state[name].shape != ours.shape or not torch.equal(ours.to(state[name].dtype), state[name]):
            raise CheckpointError(
                f"{path} has another {name!r} than the model, and it is not among the weights: build the model with what its "
                'checkpoints share, or take all of their tensors, by patterns=("*",) and statistics=True.'
            )


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def import_checkpoints(
    folder: Path | str, model: Model, task: str = "imported", skip: bool = False
) -> Zoo:
    """A zoo of every checkpoint in a folder; checkpoints in one sub-folder belong to one run and share a `seed`.

    In the public model zoos' format a run's `result.json` adds accuracies and losses to the table.

    Args:
        model: what the weights are weights of. skip: leave out files that cannot be used, with a warning for each.

    Raises:
        CheckpointError: if there is no usable checkpoint, or, unless `skip`, at the first one that cannot be used.
    """
    folder, rows, vectors, runs = Path(folder), [], [], {}
    for path in find_checkpoints(folder):
        try:
            state = read_state_dict(path)
            vector = vector_of(state, model, path)
            check_rest(state, model, path)
        except CheckpointError as error:
            if not skip:
                raise
            log.warning("left out: %s", error)
            continue
        run, step = _run_and_step(path, folder)
        seed = runs.setdefault(run, len(runs))
        row = {"task": task, "seed": seed, "kind": "imported", "step": step, "run": run, "file": str(path.relative_to(folder))}
        rows.append(row | _public_results(folder / run, step))
        vectors.append(vector)
    if not vectors:
        raise CheckpointError(f"{folder} holds no checkpoint of a {model.name}.")
    return Zoo(torch.stack(vectors), pd.DataFrame(rows), model, {"imported": str(folder.name), "classifier": model.name})


def _run_and_step(path: Path, folder: Path) -> tuple[str, int]:
    """The run's folder, relative, and the last number in the checkpoint's own name (0 without one).

    A file directly in the folder is a run of its own.
    """
    place = path.parent if path.name == PUBLIC_NAME else path
    numbers = re.findall(r"\d+", place.stem)
    run = place.parent.relative_to(folder)
    return (str(run) if run != Path(".") else place.stem), int(numbers[-1]) if numbers else 0


def _public_results(run: Path, step: int) -> dict[str, float]:
    """Accuracies and losses after `step` epochs from a run's result.json, one JSON object a line; empty without one."""
    path = run / "result.json"
    if not path.is_file():
        return {}
    for line in path.read_text().splitlines():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            raise CheckpointError(f"{path} is damaged: a line is not JSON.") from None
        if result.get("training_iteration") == step:
            names = {"acc": "accuracy", "loss": "loss"}
            values = {f"{split}_{names[kind]}": result.get(f"{split}_{kind}") for split in ("train", "test") for kind in names}
            # before the first epoch these files have -999 for what was not measured
            return {name: float(value) if value is not None and value > -999 else math.nan for name, value in values.items()}
    return {}


def state_dict_of(model: Model, vector: Tensor) -> dict[str, Tensor]:
    """One vector [p] as a state dict that `model.module()` loads with strict=True."""
    return model.state_dict(vector) if isinstance(model, ModuleClassifier) else model.layout.state_dict(vector)


def export_checkpoints(zoo: Zoo, folder: Path | str) -> list[Path]:
    """Write each network of a zoo as a safetensors state dict; returns the files, `<task>/<seed>/step_<step>.safetensors`."""
    written = []
    for row, vector in zip(zoo.table.itertuples(), zoo.weights, strict=True):
        path = Path(folder) / str(row.task) / str(row.seed) / f"step_{row.step}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in state_dict_of(zoo.model, vector).items()}, partial)
        partial.replace(path)
        written.append(path)
    return written
