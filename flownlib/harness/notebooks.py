"""The notebooks as files: finding them, checking parameters before anything runs, and committing executed outputs."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from flownlib.harness import profiles
from flownlib.harness.folders import project_root, write_file
from flownlib.harness.pictures import smaller_png
from flownlib.harness.settings import SEED, Rule, one_line, rules, shown

PARAMETERS = {"seed": Rule(int, "every random number follows from it", *SEED)}  # others have only a type
STUDIES = "studies"  # the folder of notebooks that are run over several seeds
FOLDER = "folder"  # the parameter that names one
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list}
PICTURE = "image/png"
PALETTES, MOST = (128, 64, 48, 32), 490_000  # colours of a notebook's pictures: fewer if its file would be larger than this
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Parameter:
    """A line of a parameters cell: `name: kind = default`."""

    name: str
    kind: type
    default: Any


@dataclass(frozen=True)
class Job:
    """A notebook and the parameters it will be given, all of them checked."""

    path: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""  # tells the executed copies of one notebook apart

    @property
    def copy(self) -> str:
        """The file name of the executed copy."""
        return f"{self.path.stem}{self.suffix}.ipynb"


def available() -> list[Path]:
    """The tutorial's notebooks in order."""
    return sorted((project_root() / "notebooks").glob("*.ipynb"))


def studies() -> list[Path]:
    """The notebooks that are run over several seeds."""
    return sorted((project_root() / "notebooks" / STUDIES).glob("*.ipynb"))


def find(name: str) -> Path:
    """A notebook by number ("3", "03"), by stem ("03_flow_matching", "studies/03_generation") or by path.

    Raises:
        ValueError: if there is no such notebook.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem = name.removesuffix(".ipynb")
    known = {path.stem: path for path in available()} | {f"{STUDIES}/{path.stem}": path for path in studies()}
    for other, path in known.items():
        if stem == other or (stem.isdigit() and other.startswith(f"{int(stem):02d}_")):
            return path
    raise ValueError(f"there is no notebook {name!r}; choose from {', '.join(known) or 'none so far'}")


def load(path: Path) -> nbformat.NotebookNode:
    """The notebook in a file.

    Raises:
        ValueError: if the file is not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise ValueError(f"cannot read a notebook: {one_line(error)}") from None
    except Exception as error:  # whatever a parser may trip over in a file that is no notebook
        raise ValueError(f"{path.name} is not a notebook ({type(error).__name__})") from None
    return notebook


def parameters_of(path: Path) -> dict[str, Parameter]:
    """The annotated literals of a notebook's one parameters cell, by name.

    Raises:
        ValueError: unless there is exactly one such cell, and nothing but `name: type = literal` in it.
    """
    cells = [cell for cell in load(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path.name} needs exactly one cell tagged 'parameters', it has {len(cells)}")
    try:
        return declared(cells[0].source)
    except ValueError:
        raise ValueError(
            f"the parameters cell of {path.name} may hold only lines such as `seed: int = 0`, "
            f"with a literal of type {', '.join(TYPES)}"
        ) from None


def declared(source: str) -> dict[str, Parameter]:
    """The parameters that a parameters cell declares, by name.

    Raises:
        ValueError: if anything but `name: type = literal` is in it.
    """
    found = {}
    try:
        for line in ast.parse(source).body:
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
                raise ValueError("another line")
            name, kind = line.target.id, TYPES[ast.unparse(line.annotation).split("[")[0]]
            found[name] = Parameter(name, kind, ast.literal_eval(line.value))
    except (SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(type(error).__name__) from None
    return found


def settle(known: Mapping[str, Parameter], given: Mapping[str, Any], notebook: str) -> dict[str, Any]:
    """The values given to a notebook's parameters, checked; a name that is a setting of the profile goes into `overrides`.

    A text, as command lines give it, becomes what it says where another type is meant; a folder's path becomes absolute.

    Raises:
        ValueError: for a name that is neither, a value of the wrong type or out of range, or a folder that is not there.
    """
    values, overrides, settings = {}, {}, rules(profiles.Profile)
    for name, value in given.items():
        if name in known:
            rule, said, into = PARAMETERS.get(name) or Rule(known[name].kind), f"parameter {name!r}", values
        elif name in settings and "overrides" in known:
            rule, said, into = settings[name], f"setting {name!r}", overrides
        else:
            others = "; the profile's settings are listed by: python -m flownlib settings" * ("overrides" in known)
            raise ValueError(f"{notebook} has no parameter {shown(name)}; it takes {', '.join(known)}{others}")
        into[name] = rule.parse(said, value) if isinstance(value, str) else rule.check(said, value)
    if values.get(FOLDER):
        values[FOLDER] = os.path.abspath(os.path.expanduser(values[FOLDER]))
        if not os.path.isdir(values[FOLDER]):
            raise ValueError(f"parameter {FOLDER!r} takes a folder that exists, not {shown(given[FOLDER])}")
    return values | ({"overrides": {**values.get("overrides", {}), **overrides}} if "overrides" in known else {})


def prepare(path: Path, profile: str, given: Mapping[str, str]) -> Job:
    """A job with the parameters given as texts, all of them checked, see `settle`.

    Raises:
        ValueError: for an unknown profile, parameter or setting, or a value of the wrong type or out of range.
    """
    known = parameters_of(path)
    if "profile" not in known or "profile" in given:
        raise ValueError(
            "choose the profile with --profile, not with -p"
            if "profile" in given
            else f"{path.name} has no parameter 'profile'"
        )
    values = {"profile": profile, **settle(known, given, path.name)}
    if "overrides" in known:
        values["overrides"] = {**known["overrides"].default, **values["overrides"]}
    profiles.load(profile, values.get("overrides"))
    return Job(path, {name: value for name, value in values.items() if value != known[name].default})


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of all code cells' sources: prose may be edited after a run, code may not."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def write_back(path: Path, copy: Path) -> None:
    """Take the outputs of an executed copy into the notebook itself, with the hash of the code that made them.

    Widgets are left out, since their state is not saved; pictures get a palette. Metadata stay as they were.

    Raises:
        ValueError: if the notebook was edited during the run, or an output names this checkout's folder.
    """
    notebook, executed = load(path), load(copy)
    if source_hash(notebook) != source_hash(executed):
        raise ValueError(f"{path.name} was edited while it ran: run it again")
    code = [[cell for cell in book.cells if cell.cell_type == "code"] for book in (notebook, executed)]
    for cell, done in zip(*code, strict=True):
        cell.execution_count = done.execution_count
        cell.outputs = [output for output in done.outputs if WIDGET not in output.get("data", {})]
    if str(project_root()) in json.dumps([cell.outputs for cell in code[0]]):
        raise ValueError(f"an output of {path.name} names a folder of this machine, perhaps in a warning: see {copy}")
    notebook.metadata.pop("widgets", None)
    notebook.metadata["flownlib"] = {"source_sha256": source_hash(notebook)}
    write_file(path, _small(notebook))


def _small(notebook: nbformat.NotebookNode) -> bytes:
    """The notebook as a file, its pictures with as many colours as its size allows."""
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if PICTURE in output.get("data", {})]
    drawn = [base64.b64decode(data[PICTURE]) for data in shown]
    for colours in PALETTES:
        for data, picture in zip(shown, drawn, strict=True):
            data[PICTURE] = base64.b64encode(smaller_png(picture, colours)).decode()
        content = (nbformat.writes(notebook).rstrip("\n") + "\n").encode()
        if len(content) <= MOST:
            break
    return content
