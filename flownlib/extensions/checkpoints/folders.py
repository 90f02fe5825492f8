"""A folder of checkpoints → a zoo: which files are checkpoints, of which run and after which step."""

from __future__ import annotations

import fnmatch
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

import pandas as pd
import torch

from flownlib.extensions.checkpoints.naming import Reader
from flownlib.extensions.checkpoints.reading import INDEX, CheckpointError, one_line
from flownlib.extensions.modules import ModuleClassifier
from flownlib.networks import Classifier
from flownlib.weights import first_few
from flownlib.zoo import Zoo

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
PUBLIC_NAME = "checkpoints"  # what the public model zoos (Schürholt et al. 2022) call the file in each checkpoint_000050/
TEXT = (".json", ".jsonl", ".txt", ".md", ".csv", ".yaml", ".yml", ".log", ".py")  # beside checkpoints; not our business
# what training scripts store beside the weights
BESIDE = ("optimizer*", "*optim_states*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args*")
# "epoch_3", "epoch=3-val_loss=0.12", "step500", "iter-10", "checkpoint-500", "checkpoint_000050"; of two the first counts
STEPS = tuple(
    re.compile(rf"(?<![A-Za-z])(?:{word})[-_=]?([0-9]{{1,15}})(?![0-9A-Za-z]|\.[0-9])", re.IGNORECASE)
    for word in ("(?:global_?)?step", "epoch", "iter(?:ation)?", "checkpoint")
)
RUN = re.compile(r"(?<![A-Za-z])(?:seed|run|trial|fold|replica|member)[-_=]?[0-9]+(?![0-9A-Za-z])", re.IGNORECASE)
PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.(?:safetensors|bin)$")


def find_checkpoints(folder: Path | str) -> list[Path]:
    """All checkpoints in a folder and its sub-folders, in the order of their names, where 2 comes before 10.

    A checkpoint in parts is its index. What is left out is named in the log.

    Raises:
        CheckpointError: if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    paths, left_out = _all_files(folder)
    parts = {part for index in paths if index.name.endswith(INDEX) for part in _parts(index)}
    checkpoints = []
    for path in paths:
        if reason := _passed_over(path, parts):
            left_out[reason].append(path)
        elif path.suffix not in TEXT or path.name.endswith(INDEX):
            checkpoints.append(path)
    named = {checkpoint.resolve(): checkpoint for checkpoint in checkpoints if not checkpoint.is_symlink()}
    preferred = {_network(path) for path in checkpoints if ".safetensors" in path.suffixes}
    for path in list(checkpoints):
        link = path.is_symlink() and path.resolve() in named
        if link or (".safetensors" not in path.suffixes and _network(path) in preferred):
            checkpoints.remove(path)
            twin = "by its name the same network as the safetensors beside it"
            left_out["another name of a file that is taken" if link else twin].append(path)
    left_out.pop("a part of a checkpoint", None)
    said = [f"left out {first_few([p.relative_to(folder) for p in paths], 3)}, which is {r}" for r, paths in left_out.items()]
    if not checkpoints:
        wanted = f"{', '.join(SUFFIXES)}, or files called {PUBLIC_NAME}"
        raise CheckpointError("; ".join([f"{folder} holds no checkpoints ({wanted})", *said]) + ".")
    for sentence in said:
        log.warning("%s", one_line(f"{folder}: {sentence}"))
    return sorted(checkpoints, key=lambda path: _natural(path.relative_to(folder)))


def _network(path: Path) -> tuple[Path, str]:
    """What files that hold one network in two formats agree in, as model.safetensors and pytorch_model.bin do."""
    return path.parent, PurePath(path.name.removesuffix(".index.json")).stem.removeprefix("pytorch_")


def _all_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The files under a folder by name, and what the search does not enter or cannot follow."""
    paths, left_out = [], defaultdict(list)
    for place, folders, files in os.walk(folder, onerror=lambda error: left_out["not readable"].append(Path(error.filename))):
        for name in sorted(folders):
            if name.startswith(".") or name == "__MACOSX":
                left_out["hidden"].append(Path(place, name))
            elif Path(place, name).is_symlink():
                left_out["a link to a folder"].append(Path(place, name))
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        paths += [Path(place, name) for name in sorted(files)]
    return paths, left_out


def _parts(index: Path) -> set[Path]:
    """The files beside an index that are parts of its checkpoint."""
    stem = next(index.name.removesuffix(suffix) for suffix in INDEX if index.name.endswith(suffix))
    return {path for path in index.parent.iterdir() if PART.search(path.name) and path.name.startswith(stem)}


def _passed_over(path: Path, parts: set[Path]) -> str:
    """Why a file is no checkpoint; empty for checkpoints and for text."""
    name = path.name
    if path in parts:
        return "a part of a checkpoint"
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "no file"
    if name.startswith("."):
        return "hidden"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in BESIDE):
        return "the training's state, no weights"
    if name.endswith(".distcp") or fnmatch.fnmatchcase(name, "zero_pp_rank_*_model_states.pt"):
        return "part of a distributed checkpoint: join it first, by torch's dcp_to_torch_save or DeepSpeed's zero_to_fp32.py"
    if PART.search(name):
        return "one part of a checkpoint whose index is missing"
    if name == PUBLIC_NAME or path.suffix in (*SUFFIXES, *TEXT):
        return ""
    return f"no checkpoint by its name ({', '.join(SUFFIXES)})"


def _natural(path: PurePath) -> list:
    """A key that puts 2 before 10, and depends on names alone."""
    pieces = [[int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", part))] for part in path.parts]
    return [(piece, part) for piece, part in zip(pieces, path.parts, strict=True)]


def import_checkpoints(
    folder: Path | str,
    model: Classifier | ModuleClassifier,
    task: str = "imported",
    skip: bool = False,
    *,
    key: str | None = None,
    rename: Mapping[str, str] | None = None,
    subset: bool = False,
    run: str | None = None,
) -> Zoo:
    """A zoo of every checkpoint in a folder; checkpoints of one run share a `seed`.

    A run is a sub-folder, whose own folders such as checkpoint-500/ are its steps, or files such as a_epoch_1.pt and
    a_epoch_2.pt. A step is the number after step, epoch, iter or checkpoint in a name; NaN in the table where there is
    none. In the public model zoos' format a run's `result.json` adds accuracies and losses to the table.

    Args:
        model: what the weights are weights of. skip: leave out files that cannot be used, with a warning for each.
        key: which mapping of tensors in the files. rename: a file's tensor name → the model's. subset: allow files with more
        tensors than the model. run: a regular expression for the run in a file's path, its first group if it has one.

    Raises:
        CheckpointError: if there is no usable checkpoint, or, unless `skip`, at the first one that cannot be used.
    """
    folder, rows, vectors, seeds, loose = Path(folder), [], [], {}, {}
    reader, name_run = Reader(model, key, rename, subset), _run_by(run) if run is not None else None
    for path in find_checkpoints(folder):
        try:
            vector = reader.vector(path)
            place, step = run_and_step(path.relative_to(folder), folder)
            name = name_run(path.relative_to(folder)) if name_run else place
            other = loose.setdefault((name, step, path.parent), path)
            if other != path and path.parent == folder and step is not None and not name_run:
                both = f"{path} and {other.name} are step {step} of one run by their names"
                raise CheckpointError(f'{both}; name the run by run="…", a regular expression for it in the path.')
        except CheckpointError as error:
            if not skip:
                raise
            log.warning("left out: %s", error)
            continue
        seed = seeds.setdefault(name, len(seeds))
        row = {"task": task, "seed": seed, "kind": "imported", "step": step, "run": name, "file": str(path.relative_to(folder))}
        rows.append(row | (_public_results(folder / place, step) if path.name == PUBLIC_NAME else {}))
        vectors.append(vector)
    if not vectors:
        raise CheckpointError(f"{folder} holds no checkpoint of a {model.name}.")
    without = [row["file"] for row in rows if row["step"] is None]
    if without:
        sentence = "have no step in their names, such as epoch_3 or step=500"
        log.warning("%s", one_line(f"{len(without)} of {len(rows)} checkpoints {sentence}: {', '.join(without[:3])}"))
    table = pd.DataFrame(rows).astype({"step": float} if without else {})
    return Zoo(torch.stack(vectors), table, model, {"imported": folder.name, "classifier": model.name})


def _run_by(pattern: str) -> Callable[[PurePath], str]:
    """Names a file's run by the caller's regular expression."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"run={pattern!r} is not a regular expression: {error}.") from None

    def name(path: PurePath) -> str:
        if not (match := expression.search(path.as_posix())):
            raise CheckpointError(f"{path} has no run: run={pattern!r} does not occur in it.")
        return match[1] if expression.groups and match[1] is not None else match[0]

    return name


def step_in(name: str) -> re.Match[str] | None:
    """Where a name says its step; None where it does not, or says two."""
    for expression in STEPS:
        if matches := list(expression.finditer(name)):
            return matches[0] if len(matches) == 1 else None
    return None


def run_and_step(path: PurePath, folder: Path) -> tuple[str, int | None]:
    """A checkpoint's run and its step, from its path in the folder.

    The run is the sub-folder, above folders that are steps themselves; "." is the folder. A file that lies loose is its own
    run, or with a step in its name the run before the step. A run that is named beside the step, such as seed0, is one too.
    """
    own = None if path.name == PUBLIC_NAME or path.name.endswith(INDEX) else step_in(path.stem)
    place = path.parent
    step = int(own[1]) if own else None
    while not own and (match := _whole_step(place.name)):
        step, place = int(match[1]) if step is None else step, place.parent
    if path.parent != PurePath(".") or path.name == PUBLIC_NAME or path.name.endswith(INDEX):
        return str(place / named[0] if own and (named := RUN.search(path.stem)) else place), step
    before, after = (path.stem[: own.start()], RUN.search(path.stem, own.end())) if own else (path.stem, None)
    run = "_".join(part for part in (before.rstrip("-_=. "), after and after[0]) if part) or "."
    return (f"{run}{path.suffix}" if run != "." and (folder / run).is_dir() else run), step


def _whole_step(name: str) -> re.Match[str] | None:
    """The step of a folder's name that says nothing else, as checkpoint-500."""
    match = step_in(name)
    return match if match and match.start() == 0 and name[match.end() :] in ("", *SUFFIXES) else None


def _public_results(run: Path, step: int | None) -> dict[str, float]:
    """Accuracies and losses after `step` epochs from the result.json of the public zoos, one JSON object a line.

    Lines of another form are passed over.
    """
    try:
        lines = (run / "result.json").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    kinds = (("acc", "accuracy"), ("loss", "loss"))
    names = {f"{split}_{theirs}": f"{split}_{ours}" for split in ("train", "test") for theirs, ours in kinds}
    for line in lines:
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(result, dict) and step is not None and result.get("training_iteration") == step:
            return {ours: _number(result.get(theirs)) for theirs, ours in names.items()}
    return {}


def _number(value: object) -> float:
    """A measured number; before the first epoch these files have -999 for what was not measured."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and -999 < value < 1e300
    return float(value) if known else math.nan
