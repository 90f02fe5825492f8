"""A content-addressed cache of expensive results: tensors plus JSON, never pickles.

An artefact's address is a hash of its stage, its settings and the code that makes it, which is the import closure of a
module (`closure`), so a change to any of them makes a new artefact instead of reusing a stale one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flownlib.harness.closure import fingerprint
from flownlib.harness.folders import (
    MANIFEST,
    cache_root,
    clear_partial,
    disk_trouble,
    made_folder,
    move_in,
    partial_folder,
    read_manifest,
    seal,
    unlisted,
    write_folder,
)
from flownlib.weights import Artifact, ArtifactError

log = logging.getLogger(__name__)
TENSORS, META = "tensors.safetensors", "meta.json"


def address(stage: str, settings: Mapping[str, Any], module: str) -> str:
    """The artefact's name, `<stage>-<20 hex digits>`.

    Args:
        stage: what is made. settings: JSON-serialisable; names every input. module: by whose import closure it is made.
    """
    text = json.dumps({"stage": stage, "settings": settings, "code": fingerprint(module)}, sort_keys=True)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def save_artifact(path: Path | str, artifact: Artifact) -> None:
    """Write an artefact folder, all or nothing.

    Raises:
        ArtifactError: if something else than an artefact of ours lies there, or the disk is full.
    """
    write_folder(Path(path), lambda folder: _dump(artifact, folder))


def load_artifact(path: Path | str) -> Artifact:
    """Read an artefact folder and check it against its checksums.

    Raises:
        ArtifactError: if the folder is missing, incomplete, damaged or no artefact.
    """
    path = Path(path)
    if not {TENSORS, META} <= set(read_manifest(path)["files"]):
        raise ArtifactError(f"{path} is not a saved artefact: it needs {META} and {TENSORS}.")
    return _read(path)


def cached(stage: str, settings: Mapping[str, Any], build: Callable[[], Artifact], root: Path | None = None) -> Artifact:
    """The artefact of `build`'s module under these settings, built and stored if it is absent or damaged.

    Raises:
        ArtifactError: if it is absent and cannot be stored; where the cache cannot be written, before anything is built.
    """
    return _read(_folder(address(stage, settings, build.__module__), lambda folder: _dump(build(), folder), root))


def cached_folder(stage: str, settings: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder of files of `write`'s module under these settings, all or nothing; `write` fills an empty one.

    Raises:
        ArtifactError: if it is absent and cannot be stored.
    """
    return _folder(address(stage, settings, write.__module__), write)


def _folder(name: str, write: Callable[[Path], None], root: Path | None = None) -> Path:
    """The intact folder of that name in the cache, filled by `write` where there is none."""
    path = (root or cache_root()) / name
    clear_partial(path.parent)
    if not _intact(path):
        with made_folder(path, write, name) as made:
            _put(made, path)
    return path


def keep(compute: Callable[[], tuple[str, Artifact]], root: Path | None = None) -> Artifact:
    """What `compute` returns beside its name, as it now is in the cache under that name.

    Raises:
        ArtifactError: if it cannot be stored; where the cache cannot be written, before anything is computed.
    """
    root = root or cache_root()
    with partial_folder(root) as partial:
        name, artifact = compute()
        made = partial / "made"
        made.mkdir()
        _dump(artifact, made)
        seal(made, name)
        _put(made, root / name)
    return _read(root / name)


def find(stem: str, root: Path | None = None) -> Iterator[Artifact]:
    """The intact artefacts in the cache whose names begin with `stem`."""
    root = root or cache_root()
    clear_partial(root)
    for path in sorted(root.glob(f"{stem}*")):
        if _intact(path):
            yield _read(path)


def _put(made: Path, path: Path) -> None:
    """Move a finished folder to its place. What lies there and is not what we stored is moved aside, never deleted."""
    with disk_trouble(path.parent):
        if not move_in(made, path) and not _intact(path):  # if intact, another process has stored the same meanwhile
            _move_aside(path)
            move_in(made, path)


def _intact(path: Path) -> bool:
    """Whether exactly the artefact of this address is stored."""
    try:
        record = read_manifest(path)
    except ArtifactError:
        return False
    listed = [MANIFEST, *record["files"]]
    return record["address"] == path.name and not path.is_symlink() and not unlisted(path, listed)


def _move_aside(path: Path) -> None:
    kept = path.with_name(f"aside-{secrets.token_hex(4)}-{path.name}")
    with suppress(FileNotFoundError):
        os.rename(path, kept)
        log.warning("%s was damaged or not written here and is being rebuilt; what lay there is now %s", path, kept.name)


def _dump(artifact: Artifact, folder: Path) -> None:
    with disk_trouble(folder):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in artifact.tensors.items()}, folder / TENSORS)
        (folder / META).write_text(json.dumps(artifact.meta, indent=1))


def _read(folder: Path) -> Artifact:
    """An artefact whose checksums are right, which does not make it ours."""
    try:
        meta = json.loads((folder / META).read_text())
        if not isinstance(meta, dict):
            raise ValueError
        return Artifact(load_file(folder / TENSORS), meta)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ArtifactError(f"{folder} is not a saved artefact ({type(error).__name__}).") from None
