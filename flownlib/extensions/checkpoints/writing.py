"""Networks of a zoo → files that the original class loads."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pandas as pd
from safetensors.torch import save
from torch import Tensor

from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import Classifier
from flownlib.zoo import Zoo

LONGEST = 120  # characters of a folder's name


def state_dict_of(model: Classifier | ModuleClassifier, vector: Tensor) -> dict[str, Tensor]:
    """One vector [p] as a state dict that `model.module()` loads with strict=True."""
    return model.state_dict(vector) if isinstance(model, ModuleClassifier) else model.layout.state_dict(vector)


def export_checkpoints(zoo: Zoo, folder: Path | str) -> list[Path]:
    """Write each network of a zoo as a safetensors state dict, one file a row.

    Returns the files, `<task>/<seed>/step_<step>.safetensors`; rows of one step are step_<step>_0, step_<step>_1, …, and
    rows without one network_0, network_1, …. What lies in the folder stays: a file that is there with the same content
    counts as written.

    Raises:
        ValueError: before anything is written, if a file is there with other content, a task or seed is no name for a
            folder, or the model's state holds more than tensors.
    """
    paths = [Path(folder, *parts) for parts in _names(zoo.table)]
    _check_state(zoo)
    for row, path in enumerate(paths):
        if not path.parent.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"{path} would lie outside of {folder}, through a link; choose another folder")
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == _content(zoo, row)):
            raise ValueError(f"{path} is there already and is not overwritten; choose another folder")
        if above := next((p for p in path.parents if p.exists() and not p.is_dir()), None):
            raise ValueError(f"{above} is a file, where a folder is needed; choose another folder")
    for row, path in enumerate(paths):
        if not path.exists():
            _write(path, _content(zoo, row))
    return paths


def _names(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(task, seed, file) of each row, all different."""
    rows = []
    for task, seed, step in zip(table["task"], table["seed"], table["step"], strict=True):
        named = "network" if pd.isna(step) else f"step_{int(step) if float(step).is_integer() else step}"
        rows.append((_folder_name("task", task), _folder_name("seed", seed), named))
    total, seen, names = Counter(rows), Counter(), []
    for row in rows:
        alone = total[row] == 1 and row[2] != "network"
        names.append((*row[:2], f"{row[2]}.safetensors" if alone else f"{row[2]}_{seen[row]}.safetensors"))
        seen[row] += 1
    if twins := [name for name, count in Counter("/".join(name).casefold() for name in names).items() if count > 1]:
        raise ValueError(f"two tasks differ in capital letters only, and would share the file {twins[0]}; rename one")
    return names


def _folder_name(kind: str, value: object) -> str:
    """A task or seed as the name of a folder."""
    name = str(value)
    if (
        not name.isprintable()
        or name.strip(". ") != name
        or not 0 < len(name.encode()) <= LONGEST
        or set(name) & set('/\\:*?"<>|')
    ):
        raise ValueError(f"the {kind} {name[:LONGEST]!r} is no name for a folder: let it have letters, digits, - and _ only")
    return name


def _check_state(zoo: Zoo) -> None:
    """Safetensors hold tensors only."""
    for name, value in state_dict_of(zoo.model, zoo.weights[0]).items() if len(zoo) else ():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{zoo.model.name} has {name!r} in its state, no tensor: write state_dict_of(model, vector) by torch.save"
            )


def _content(zoo: Zoo, row: int) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in state_dict_of(zoo.model, zoo.weights[row]).items()})


def _write(path: Path, content: bytes) -> None:
    """A whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
