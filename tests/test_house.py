"""The laws of the house: what is small stays small, and no arrow runs back up.

`python tests/test_house.py` draws the house anew in CONTRIBUTING.md, from the imports.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from flownlib.harness.closure import imports_of, modules

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
FILES = {name: path for name, path in modules().items() if path.name != "__main__.py"}
FOLDERS = ("tasks", "speed", "extensions", "harness", "plots", "chapters", "benchmarks")
DOOR = "flownlib.harness.cli"  # the command line opens every room
PLAIN = {"flownlib.statistics", "flownlib.weights"}  # of the core, what the harness may use: intervals and stored tensors


def folder(module: str) -> str:
    """The folder that a module is in; "core" for those at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "core"


def lines(path: Path) -> int:
    return path.read_text().count("\n")


@cache
def floor(module: str) -> int:
    """1 + the highest floor among what a module imports; package faces are not counted."""
    below = [name for name in imports_of(module) if name != module and name in FILES and FILES[name].name != "__init__.py"]
    return 1 + max(map(floor, below), default=0)


def picture() -> str:
    """The house as a diagram: an arrow from a folder to each that it imports, where no longer way says the same."""
    arrows = {name: set() for name in ("core", *FOLDERS)}
    for name in FILES:
        if name != DOOR:
            arrows[folder(name)] |= {folder(other) for other in imports_of(name)} - {folder(name)}
    reach = {name: arrows[name].union(*(arrows[other] for other in arrows[name])) for name in arrows}
    for _ in FOLDERS:
        reach = {name: reach[name].union(*(reach[other] for other in reach[name])) for name in reach}
    rows = [f"    {name} --> {other}" for name in arrows for other in sorted(arrows[name])]
    rows = [row for row in rows if not _said_otherwise(*row.split(" --> "), arrows, reach)]
    return "\n".join(["```mermaid", "graph TD", *rows, "```"])


def _said_otherwise(name: str, other: str, arrows: dict, reach: dict) -> bool:
    return any(other in reach[between] for between in arrows[name.strip()] - {other})


def test_the_picture_in_contributing_is_that_of_the_imports() -> None:
    assert picture() in CONTRIBUTING.read_text(), "draw it anew: python tests/test_house.py"


def test_the_core_is_small_and_imports_no_folder() -> None:
    core = [name for name in FILES if folder(name) == "core"]
    assert len(core) <= 15 and sum(lines(FILES[name]) for name in core) <= 2600
    assert not [(name, other) for name in core for other in imports_of(name) if folder(other) != "core"]


def public_names(module: str) -> list[str]:
    """Functions and constants at a module's top that no underscore marks as its own; classes are used without being named."""
    names: list[str] = []
    for node in ast.parse(FILES[module].read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_what_the_package_offers_is_shown_to_readers() -> None:
    import flownlib

    cells = [cell for path in ROOT.glob("notebooks/**/*.ipynb") for cell in json.loads(path.read_text())["cells"]]
    shown = words("".join("".join(cell["source"]) for cell in cells) + (ROOT / "README.md").read_text())
    assert set(flownlib.__all__) <= shown and all(getattr(flownlib, name) for name in flownlib.__all__)


def test_a_public_name_of_the_core_is_used_outside_its_module() -> None:
    texts = {name: words(path.read_text()) for name, path in FILES.items()}
    texts |= {path.name: words(path.read_text()) for path in ROOT.glob("tests/*.py")}
    notebooks = words("".join(path.read_text() for path in ROOT.glob("notebooks/**/*.ipynb")))
    core = [name for name in FILES if folder(name) == "core"]
    idle = [
        (module, name)
        for module in core
        for name in public_names(module)
        if name not in notebooks and not any(name in text for other, text in texts.items() if other != module)
    ]
    assert not idle


def test_the_library_can_be_held_in_the_head() -> None:
    assert sum(map(lines, FILES.values())) <= 16_110
    assert max(map(floor, FILES)) <= 9


def test_no_chapter_imports_a_chapter() -> None:
    def chapter(name: str) -> str | None:
        part = name.split(".")[-1]
        return part[:3] if folder(name) == "chapters" and part[:1] == "c" and part[1:3].isdigit() else None

    pairs = [(name, other) for name in FILES for other in imports_of(name) if chapter(name) and chapter(other)]
    assert not [(name, other) for name, other in pairs if chapter(name) != chapter(other)]


def test_the_harness_knows_no_method() -> None:
    inside = [name for name in FILES if folder(name) == "harness" and name != DOOR]
    assert not [(n, o) for n in inside for o in imports_of(n) if folder(o) != "harness" and o not in PLAIN | {"flownlib"}]


def test_lower_rooms_import_no_higher_ones() -> None:
    higher = {"tasks": ("extensions", "plots", "chapters"), "speed": ("extensions", "plots", "chapters")}
    higher |= {"extensions": ("plots", "chapters"), "plots": ("chapters",)}
    arrows = [(name, other) for name in FILES for other in imports_of(name)]
    assert not [(name, other) for name, other in arrows if folder(other) in higher.get(folder(name), ())]


def test_package_faces_export_no_extension() -> None:
    faces = [name for name, path in FILES.items() if path.name == "__init__.py"]
    assert not [(name, other) for name in faces for other in imports_of(name) if folder(other) == "extensions"]


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_is_one_room(module: str) -> None:
    path = FILES[module]
    assert lines(path) <= 350
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{module}.{node.name} is too long"


if __name__ == "__main__":
    before, rest = CONTRIBUTING.read_text().split("<!-- house:begin -->")
    after = rest.split("<!-- house:end -->")[1]
    CONTRIBUTING.write_text(f"{before}<!-- house:begin -->\n{picture()}\n<!-- house:end -->{after}")
