"""One checkpoint file → the named tensors in it. A file is known by its first bytes, not by its name."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

INDEX = (".safetensors.index.json", ".bin.index.json")  # lists the files of a checkpoint in parts
DEPTH = 8  # of mappings in mappings
TORCH_PROTOCOL = b"\x02"  # of the pickles that torch.save writes
MAGIC = {  # how files begin that are often mistaken for checkpoints
    b"version https://git-lfs": "is a Git LFS pointer in place of the file: fetch it by `git lfs pull`",
    b"<": "is a web page or XML, not a checkpoint: download the file itself",
    bytes.fromhex("00051607"): "is a macOS sidecar file that holds no tensors: delete it",
    b"\x93NUMPY": "is a NumPy array without names: save a state dict",
    b"\x89HDF": "is an HDF5 file: convert it to a state dict",
    b"GGUF": "is a GGUF file: convert it to a state dict",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence that names the file, in one line whatever names it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def listed(maps: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Keys and their first tensor names, for a sentence."""

    def shown(key: str, tensors: Mapping[str, Tensor]) -> str:
        return f"{key or 'the file itself'!r} ({', '.join(list(tensors)[:3])}{', …' if len(tensors) > 3 else ''})"

    parts = [shown(key, tensors) for key, tensors in list(maps.items())[:6]]
    return ", ".join(parts) + (", …" if len(maps) > 6 else "")


def one_line(text: str, longest: int = 1000) -> str:
    """Text that quotes names out of files: without line breaks and other control characters, and not endless."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= longest else text[:longest] + "…"


def tensor_maps(path: Path) -> dict[str, dict[str, Tensor]]:
    """All mappings of names to tensors in a checkpoint, by their place in it: "" is the file itself, "ema.model" a nested one.

    Raises:
        CheckpointError: if the file is missing, damaged, holds no tensors, or would have to run code to be read.
    """
    content = _joined(path) if path.name.endswith(INDEX) else _load(path)
    maps: dict[str, dict[str, Tensor]] = {}
    seen = set()  # a mapping may hold itself

    def collect(value: object, place: str, depth: int) -> None:
        if not isinstance(value, Mapping) or depth > DEPTH or id(value) in seen:
            return
        seen.add(id(value))
        tensors = {name: t.detach() for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor)}
        if tensors:
            maps[place] = tensors
        for name, inner in value.items():
            collect(inner, f"{place}.{name}" if place else str(name), depth + 1)

    collect(content, "", 0)
    if not maps:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no named tensors, only: {keys or 'nothing'}.")
    return maps


def _load(path: Path) -> object:
    """What a file holds, by safetensors or by torch without unpickling."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    if not head:
        raise CheckpointError(f"{path} is empty, and no checkpoint.")
    for magic, reason in MAGIC.items():
        if head.lstrip().startswith(magic):
            raise CheckpointError(f"{path} {reason}.")
    try:
        if head.startswith(b"PK") and (reason := _other_archive(path)):
            raise CheckpointError(f"{path} {reason}.")
        if head[8:9] == b"{":
            return load_file(path)
        if not head.startswith((b"PK", b"\x80")):
            raise CheckpointError(
                f"{path} is damaged or is not a checkpoint: it begins neither as torch.save's files do nor as safetensors do."
            )
        with warnings.catch_warnings(), path.open("rb") as file:  # an open file, for torch would go by the name's suffix
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a parser may trip over in bytes that are no checkpoint
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked or (head[:1] == b"\x80" and head[1:2] > TORCH_PROTOCOL):
            what = f" ({blocked[1]})" if blocked else ""
            raise CheckpointError(
                f"{path} holds more than tensors, and reading it could run code, so it is refused{what}; save only the state "
                "dict, best as safetensors."
            ) from None
        raise CheckpointError(f"{path} is damaged or is not a checkpoint: it is cut short, or bytes were changed.") from None


def _other_archive(path: Path) -> str:
    """Why a zip archive is none of torch.save's, as the end of a sentence; empty if it is one."""
    names = zipfile.ZipFile(path).namelist()
    if any(name.endswith(("constants.pkl", "/code/")) or "/code/" in name for name in names):
        return "is a TorchScript program: load it by torch.jit.load and save its state_dict()"
    if any(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays: save a state dict"
    return "" if any(name.endswith("data.pkl") for name in names) else "is a zip archive without a checkpoint: unpack it"


def _joined(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in parts, from its index."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path} is damaged: it is no index of a checkpoint in parts.") from None
    if odd := next((file for file in files if Path(file).name != file or "\0" in file), None):
        raise CheckpointError(f"{path} names a part outside of its own folder, {odd!r}, and is refused.")
    parts = {file: _load(path.parent / file) for file in files}
    for name, file in places.items():
        if not isinstance(parts[file], Mapping) or not isinstance(parts[file].get(name), Tensor):
            raise CheckpointError(f"{path} is damaged: {file} has no tensor {name!r}.")
    return {name: parts[file][name] for name, file in places.items()}
