"""A content-addressed cache of expensive results: tensors plus JSON, never pickles.

An artefact's address is a hash of its stage, its settings, its inputs' addresses and the source code that
makes it, so a change to any of them makes a new artefact instead of reusing a stale one.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flownlib.harness.folders import (
    MANIFEST,
    clear_partial,
    disk_trouble,
    made_folder,
    move_in,
    read_manifest,
    unlisted,
    write_folder,
)
from flownlib.weights import Artifact, ArtifactError

log = logging.getLogger(__name__)
TENSORS, META = "tensors.safetensors", "meta.json"


def project_root() -> Path:
    """The checkout that holds `notebooks/`, or the current folder when the library is installed without one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def cache_root() -> Path:
    """Where artefacts live: the environment variable FLOWN_CACHE, else `.cache/` in the project."""
    return Path(os.environ.get("FLOWN_CACHE") or project_root() / ".cache")


def fingerprint(*modules: ModuleType) -> str:
    """Hash of the modules' code. Comments, docstrings and layout do not count; anything that can change a result does."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(_code(inspect.getsource(module)).encode())
    return digest.hexdigest()[:16]


@cache
def _code(source: str) -> str:
    """A module's source as a syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return ast.dump(tree)


def address(stage: str, settings: Mapping[str, Any], code: Iterable[ModuleType] = ()) -> str:
    """The artefact's name, `<stage>-<20 hex digits>`. `settings` must be JSON-serialisable and name every input."""
    text = json.dumps({"stage": stage, "settings": settings, "code": fingerprint(*code)}, sort_keys=True)
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


def cached(
    stage: str,
    settings: Mapping[str, Any],
    build: Callable[[], Artifact],
    code: Iterable[ModuleType] = (),
    root: Path | None = None,
) -> Artifact:
    """The artefact at `address(stage, settings, code)`, built and stored if it is absent or damaged.

    Raises:
        ArtifactError: if it is absent and cannot be stored; where the cache cannot be written, before anything is built.
    """
    return _read(cached_folder(stage, settings, lambda folder: _dump(build(), folder), code, root))


def cached_folder(
    stage: str,
    settings: Mapping[str, Any],
    write: Callable[[Path], None],
    code: Iterable[ModuleType] = (),
    root: Path | None = None,
) -> Path:
    """The folder of files at `address(stage, settings, code)`, all or nothing; `write` fills an empty one if it is absent.

    What lies there and is not what we stored is moved aside, never deleted.

    Raises:
        ArtifactError: if it is absent and cannot be stored.
    """
    name, root = address(stage, settings, code), root or cache_root()
    path = root / name
    clear_partial(root)
    if not _intact(path):
        with made_folder(path, write, name) as made, disk_trouble(root):
            if not move_in(made, path) and not _intact(path):  # if intact, another process has stored the same meanwhile
                _move_aside(path)
                move_in(made, path)
    return path


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
