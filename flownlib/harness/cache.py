"""A content-addressed cache of expensive results: tensors plus JSON, never pickles.

An artefact's address is a hash of its stage, its settings, its inputs' addresses and the source code that
makes it, so a change to any of them makes a new artefact instead of reusing a stale one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flownlib.harness.closure import fingerprint
from flownlib.weights import Artifact, ArtifactError

log = logging.getLogger(__name__)
TENSORS, META = "tensors.safetensors", "meta.json"


def project_root() -> Path:
    """The checkout that holds `notebooks/`, or the current folder when the library is installed without one."""
    checkout = Path(__file__).resolve().parent.parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def cache_root() -> Path:
    """Where artefacts live: the environment variable FLOWN_CACHE, else `.cache/` in the project."""
    return Path(os.environ.get("FLOWN_CACHE") or project_root() / ".cache")


def address(stage: str, settings: Mapping[str, Any], module: str) -> str:
    """The artefact's name, `<stage>-<20 hex digits>`.

    Args:
        stage: what is made. settings: JSON-serialisable; names every input. module: by whose import closure it is made.
    """
    text = json.dumps({"stage": stage, "settings": settings, "code": fingerprint(module)}, sort_keys=True)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that replaces `path`; a reader sees all of it or none, whatever interrupts the write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    try:
        write(partial)
        if path.exists():
            shutil.rmtree(path)
        try:
            os.replace(partial, path)
        except OSError:
            if not path.exists():  # otherwise another process has just written the same files: keep its copy
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_artifact(path: Path | str, artifact: Artifact) -> None:
    """Write an artefact folder, all or nothing."""

    def write(folder: Path) -> None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in artifact.tensors.items()}, folder / TENSORS)
        meta = {"sha256": _sha256(folder / TENSORS), "meta": artifact.meta}
        (folder / META).write_text(json.dumps(meta, indent=1))

    write_folder(Path(path), write)


def load_artifact(path: Path | str) -> Artifact:
    """Read an artefact folder and check its tensors' checksum.

    Raises:
        ArtifactError: if the folder is missing, incomplete or damaged.
    """
    path = Path(path)
    if not (path / META).is_file() or not (path / TENSORS).is_file():
        raise ArtifactError(f"{path} is not a saved artefact: it needs {META} and {TENSORS}.")
    try:
        record = json.loads((path / META).read_text())
        if record["sha256"] != _sha256(path / TENSORS):
            raise ArtifactError(f"{path} is damaged: its tensors do not match their checksum. Delete it and build it again.")
        return Artifact(load_file(path / TENSORS), record["meta"])
    except (json.JSONDecodeError, KeyError, SafetensorError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}). Delete it and build it again.") from None


def cached(
    stage: str,
    settings: Mapping[str, Any],
    build: Callable[[], Artifact],
    root: Path | None = None,
) -> Artifact:
    """The artefact of `build`'s module under these settings, built and stored if it is absent or damaged."""
    path = (root or cache_root()) / address(stage, settings, build.__module__)
    if path.exists():
        try:
            return load_artifact(path)
        except ArtifactError as error:
            log.warning("%s It is being rebuilt.", error)
    artifact = build()
    save_artifact(path, artifact)
    return artifact


def cached_folder(stage: str, settings: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder of files of `write`'s module under these settings, all or nothing; `write` fills an empty one."""
    path = cache_root() / address(stage, settings, write.__module__)
    if not path.is_dir():
        write_folder(path, write)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
