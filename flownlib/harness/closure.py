"""Which code a function depends on: the import closure of its module inside this package, as one hash.

Nothing is listed by hand, so nothing can be forgotten. Comments, docstrings and layout do not count. Beside a module's own
source counts a file of the same name in another language, such as a compiled kernel's. The harness and the plots do not
count: they store, read settings, report and draw, and what a function reads of the settings is in its key already.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = __name__.split(".")[0]
ROOT = Path(__file__).resolve().parent.parent.parent
NO_METHOD = (__name__.rsplit(".", 1)[0], f"{PACKAGE}.plots")
SOURCES = (".cpp", ".cu", ".js")


def closure(module: str) -> tuple[str, ...]:
    """The names of all modules of this package that a module imports, directly or not, itself included; sorted.

    Imports inside functions count too.

    Args:
        module: dotted name, such as "flownlib.vae".

    Raises:
        ValueError: if there is no such module in this package.
    """
    if _path(module) is None:
        raise ValueError(f"{module!r} is no module of {PACKAGE}")
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen and not name.startswith(NO_METHOD) and _path(name):
            seen.add(name)
            todo += _parsed(name)[1]
    return tuple(sorted(seen))


def modules() -> dict[str, Path]:
    """Every module of this package by its dotted name."""
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(module: str) -> tuple[str, ...]:
    """The modules of this package that a module names in its imports, sorted."""
    return tuple(sorted(name for name in _parsed(module)[1] if _path(name)))


@cache
def fingerprint(module: str) -> str:
    """16 hex digits: the code of everything in `closure(module)`."""
    text = "".join(f"{name}:{_parsed(name)[0]}" for name in closure(module))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of(source: str) -> str:
    """16 hex digits: a piece of code, such as a notebook's, and the code of every module of this package behind its imports."""
    dump, imports = _read(source)
    text = dump + "".join(fingerprint(name) for name in sorted(imports) if _path(name))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _path(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((found for found in candidates if found.is_file()), None)


@cache
def _parsed(module: str) -> tuple[str, frozenset[str]]:
    """A module's hash, and the modules of this package that it names in its imports."""
    path = _path(module)
    dump, imports = _read(path.read_text())
    digest = hashlib.sha256(dump.encode())
    for suffix in SOURCES:
        if path.with_suffix(suffix).is_file():
            digest.update(path.with_suffix(suffix).read_bytes())
    return digest.hexdigest(), imports


def _read(source: str) -> tuple[str, frozenset[str]]:
    """Code without comments, docstrings and layout, and what it names of this package in its imports."""
    tree, imports = ast.parse(source), set()
    typing_only = {inner for node in tree.body if _for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # either may be a module: `from package import module`, `from package.module import name`
            imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return ast.dump(tree), frozenset(name for name in imports if name.split(".")[0] == PACKAGE)


def _for_types(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
