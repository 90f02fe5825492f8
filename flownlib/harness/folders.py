"""The one door through which files and folders are written: whole or not at all, and never over what is not ours.

A folder that we wrote holds `manifest.json`, which lists every other file with its checksum. The folder is ours as long as it
holds exactly these files, byte for byte; only then may it be replaced.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flownlib.weights import ArtifactError

MANIFEST, FORMAT = "manifest.json", "flownlib folder 1"
MARK, MARKED = ".flownlib", b"This folder was made by flownlib, which writes over its own files in it.\n"
PARTIAL = re.compile(r"\.partial-flownlib-[0-9a-f]{16}")


def project_root() -> Path:
    """The checkout that holds `notebooks/`, or the current folder when the library is installed without one."""
    checkout = Path(__file__).resolve().parent.parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def cache_root() -> Path:
    """Where artefacts live: the environment variable FLOWN_CACHE, else `.cache/` in the project."""
    return Path(os.environ.get("FLOWN_CACHE") or project_root() / ".cache")


@contextmanager
def disk_trouble(folder: Path) -> Iterator[None]:
    """Whatever the disk refuses inside the block, a full one above all, as one sentence that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shown = next((whole.parent for whole in (folder, *folder.parents) if PARTIAL.fullmatch(whole.name)), folder)
        raise ArtifactError(
            f"{shown} cannot be written ({getattr(error, 'strerror', None) or error}): make room there or name another folder, "
            "for the cache by the environment variable FLOWN_CACHE."
        ) from None


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for what is not whole yet. It is gone after the block, or at the next start after a kill.

    Raises:
        ArtifactError: if `parent` cannot be written.
    """
    with disk_trouble(parent):
        parent.mkdir(parents=True, exist_ok=True)
        clear_partial(parent)
        partial, lock = _locked_folder(parent)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and a lock on it, which the system frees when this process ends, however that happens."""
    while True:
        partial = parent / f".partial-flownlib-{secrets.token_hex(8)}"
        partial.mkdir()  # not by tempfile, which would keep it from other users of a shared cache
        with suppress(FileNotFoundError):  # another process has cleared it before it was locked
            lock = os.open(partial, os.O_RDONLY)
            with suppress(OSError):  # no locks on this file system, hence nothing is cleared there either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.is_dir():
                return partial, lock
            os.close(lock)


def clear_partial(parent: Path) -> None:
    """Remove what killed processes left in `parent`; what a living one is writing stays."""
    with suppress(OSError):
        for partial in [path for path in parent.iterdir() if PARTIAL.fullmatch(path.name)]:
            with suppress(OSError):
                lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(partial, ignore_errors=True)
                finally:
                    os.close(lock)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whatever interrupts the write.

    Raises:
        ArtifactError: if the disk refuses it.
    """
    path = path.resolve()  # a link stays a link
    with partial_folder(path.parent) as partial, disk_trouble(path.parent):
        (partial / path.name).write_bytes(content)
        if path.exists():
            shutil.copymode(path, partial / path.name)
        os.replace(partial / path.name, path)


def seal(folder: Path, address: str = "") -> None:
    """Write the manifest of a finished folder and give its files the rights that the umask grants.

    Args:
        address: of a cached artefact, so that no other folder can stand in its place.
    """
    with disk_trouble(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        record = {"format": FORMAT, "address": address}
        record["files"] = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
        (folder / MANIFEST).write_text(json.dumps(record, indent=1))
        for path in files:  # safetensors writes files that only their owner can read
            path.chmod((folder / MANIFEST).stat().st_mode)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are those that it lists, unchanged.

    Raises:
        ArtifactError: if the folder is missing, damaged or not ours.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} is not a saved artefact: it has no {MANIFEST}.")
    damaged = f"{folder} is damaged or was not written here"
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
        if record["format"] != FORMAT:
            raise ArtifactError(f"{damaged}: {MANIFEST} is not of flownlib's format.")
        for name, digest in record["files"].items():
            if not (folder / name).is_file():
                raise ArtifactError(f"{damaged}: {name} is missing.")
            if sha256(folder / name) != digest:
                raise ArtifactError(f"{damaged}: {name} does not match its checksum.")
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{damaged}: {Path(error.filename or folder).name} cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{damaged}: {MANIFEST} is no manifest ({type(error).__name__}).") from None
    return record


def foreign(folder: Path) -> Path | None:
    """Something in a folder that was not written here or has changed since; None if there is nothing but what we wrote."""
    try:
        listed = [MANIFEST, *read_manifest(folder)["files"]]
    except ArtifactError:
        listed = []
    return unlisted(folder, listed)


def unlisted(folder: Path, listed: Iterable[str]) -> Path | None:
    """The first file, link or folder that is none of the listed files and holds none of them."""
    files = {folder / name for name in listed}
    known = files | {above for path in files for above in path.parents}
    return next((path for path in sorted(folder.rglob("*")) if path not in known or path.is_symlink()), None)


def check_target(path: Path) -> None:
    """Refuse to write a folder at `path` unless nothing lies there, an empty folder does, or one that is just as we wrote it.

    Raises:
        ArtifactError: for anything else, and where nothing can be written.
    """
    with disk_trouble(path):
        if path.is_symlink() or path.is_mount() or (path.exists() and not path.is_dir()):
            raise ArtifactError(f"{path} is a file, a link or a whole disk: name a new folder.")
        if Path.cwd().is_relative_to(path.resolve()):
            raise ArtifactError(f"{path.resolve()} is the folder that you are in, or holds it: name a new folder.")
        if path.is_dir() and any(path.iterdir()) and (found := foreign(path)):
            raise ArtifactError(f"{path} holds what was not written here ({found.name}) and stays as it is: name a new folder.")
    with partial_folder(path.parent):
        pass


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that appears at `path`; a reader sees all of it or none, whatever interrupts the write.

    Raises:
        ArtifactError: before anything is written, if `path` holds anything but an earlier folder of ours; if the disk is full.
    """
    check_target(path)
    with made_folder(path, write) as made, disk_trouble(path):
        if not move_in(made, path) and read_manifest(made)["files"] != read_manifest(path)["files"]:
            _replace(made, path)


@contextmanager
def made_folder(path: Path, write: Callable[[Path], None], address: str = "") -> Iterator[Path]:
    """A finished folder that is to be moved to `path`, inside a partial one beside it."""
    with partial_folder(path.parent) as partial:
        made = partial / "made"
        made.mkdir()
        write(made)
        seal(made, address)
        yield made


def move_in(made: Path, path: Path) -> bool:
    """Rename a finished folder to `path`; False if anything but an empty folder lies there already."""
    try:
        os.rename(made, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _replace(made: Path, path: Path) -> None:
    """Exchange both folders, so that `made` is the old one; undone if something was added to that meanwhile."""
    _exchange(made, path)
    if found := foreign(made):
        _exchange(made, path)
        raise ArtifactError(f"{path} holds what was not written here ({found.name}) and stays as it is: name a new folder.")


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step where the system can; else a kill in between leaves `other` under a second name."""
    system, places = ctypes.CDLL(None), (-1, os.fsencode(one.absolute()), -1, os.fsencode(other.absolute()))
    for name in ("renameat2", "renameatx_np"):  # Linux, macOS; in both, 2 asks for an exchange
        if hasattr(system, name) and getattr(system, name)(*places, 2) == 0:
            return
    aside = other.with_name(f"{other.name}-before-{secrets.token_hex(4)}")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def claim(folder: Path, default: bool = False) -> None:
    """Mark a new or empty folder as ours; one with the mark is taken as it is.

    Args:
        default: whether it is the project's own folder, which needs no mark to be taken.

    Raises:
        ArtifactError: if the folder is a file, holds anything without our mark, or cannot be written.
    """
    with disk_trouble(folder):
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is a file: name a folder.")
        marked = (folder / MARK).is_file() and (folder / MARK).read_bytes() == MARKED
        others = [path for path in folder.iterdir() if not PARTIAL.fullmatch(path.name)] if folder.is_dir() else []
        if others and not marked and not default:
            raise ArtifactError(f"{folder} holds what was not written here ({min(others).name}): name a new or empty folder.")
    write_file(folder / MARK, MARKED)


def sha256(path: Path) -> str:
    """A file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
