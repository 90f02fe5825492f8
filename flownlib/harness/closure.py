"""Which code a function depends on: the import closure of its module inside this package, as one hash.

Nothing is listed by hand, so nothing can be forgotten. Comments, docstrings and layout do not count. Beside a module's own
source counts a file of the same name in another language, such as a compiled kernel's. The harness and the plots do not
count: they store, read settings, report and draw, and what a function reads of the settings is in its key already.

The source is that of the moment when this module is imported: what is edited later is not what runs in this process.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

PACKAGE = __name__.split(".")[0]
ROOT = Path(__file__).resolve().parent.parent.parent
NO_METHOD = (__name__.rsplit(".", 1)[0], f"{PACKAGE}.plots")
LANGUAGES = (".cpp", ".cu", ".js")


def modules() -> dict[str, Path]:
    """Every module of this package by its dotted name."""
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


PATHS = modules()
SOURCES = {name: path.read_bytes() for name, path in PATHS.items()}
OTHERS = {
    name: b"".join(other.read_bytes() for other in map(path.with_suffix, LANGUAGES) if other.is_file())
    for name, path in PATHS.items()
}


def closure(module: str) -> tuple[str, ...]:
    """The names of all modules of this package that a module depends on, directly or not, itself included; sorted.

    These are the modules that it imports, inside functions too; the packages that they lie in, whose faces run first; and
    those that write into one of them when they are imported, such as an extension that registers itself.

    Args:
        module: dotted name, such as "flownlib.vae"; or that of an imported module of somebody else's.

    Raises:
        ValueError: if there is no such module, or it has no file, as a notebook's has none.
    """
    _know(module)
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen or name not in PATHS or (name.startswith(NO_METHOD) and name != module):
            continue
        seen.add(name)
        todo += [*_parsed(name).imports, *_writers().get(name, ()), name.rpartition(".")[0]]
    return tuple(sorted(seen))


def _know(module: str) -> None:
    """Take in a module from outside this package; what it imports from elsewhere than here does not count."""
    if module not in PATHS:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            raise ValueError(f"{module!r} has no file: what is cached has to be defined in a module, not in a notebook")
        PATHS[module], SOURCES[module], OTHERS[module] = Path(file), Path(file).read_bytes(), b""


def imports_of(module: str) -> tuple[str, ...]:
    """The modules of this package that a module names in its imports, sorted."""
    return tuple(sorted(name for name in _parsed(module).imports if name in PATHS))


@cache
def fingerprint(module: str) -> str:
    """16 hex digits: the code of everything in `closure(module)`."""
    text = "".join(f"{name}:{_parsed(name).digest}" for name in closure(module))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of(source: str) -> str:
    """16 hex digits: a piece of code, such as a notebook's, and the code of every module of this package behind its imports."""
    code = _read(source)
    text = code.digest + "".join(fingerprint(name) for name in sorted(code.imports) if name in PATHS)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Module:
    """The hash of some code, the names in its imports, and the modules whose objects it changes when it is imported."""

    digest: str
    imports: frozenset[str]
    changes: frozenset[str]


@cache
def _parsed(module: str) -> _Module:
    package = module if PATHS[module].name == "__init__.py" else module.rpartition(".")[0]
    return _read(SOURCES[module], package, OTHERS[module])


def _read(source: str | bytes, package: str = "", other: bytes = b"") -> _Module:
    tree = ast.parse(source)
    types_only = {inner for node in tree.body if _for_types(node) for part in node.body for inner in ast.walk(part)}
    sources: dict[str, set[str]] = {}  # local name → the modules that it may come from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in types_only:
            for name, found in _imported(node, package):
                sources.setdefault(name, set()).update(found)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    imports = frozenset(name for found in sources.values() for name in found if name.split(".")[0] == PACKAGE)
    changed = ([n for n in sources.get(name, ()) if n in PATHS] for node in tree.body for name in _changed(node))
    changes = frozenset(max(found, key=len) for found in changed if found)  # of a package and a module in it, the module
    digest = hashlib.sha256(_shape(tree).encode() + other).hexdigest()
    return _Module(digest, imports, changes)


@cache
def _writers() -> dict[str, set[str]]:
    """Module → those that change something of it when they are imported."""
    writers: dict[str, set[str]] = {}
    for name in PATHS:
        for changed in _parsed(name).changes:
            writers.setdefault(changed, set()).add(name)
    return writers


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> list[tuple[str, set[str]]]:
    """(local name, modules) of an import; either may be a module: `from package import module`, `from module import name`."""
    if isinstance(node, ast.Import):
        return [(alias.asname or alias.name.split(".")[0], {alias.name}) for alias in node.names]
    source = resolve_name("." * node.level + (node.module or ""), package)
    return [(alias.asname or alias.name, {source, f"{source}.{alias.name}"}) for alias in node.names]


def _changed(node: ast.stmt) -> list[str]:
    """The names whose objects a statement at the top of a module may change: `REGISTRY[x] = y`, `a.append(x)`, `@register`."""
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        changed = [target for target in targets if isinstance(target, ast.Subscript | ast.Attribute)]
    elif isinstance(node, ast.Expr):
        changed = [node.value]
    else:
        changed = getattr(node, "decorator_list", [])
    return [name for target in changed if (name := _root(target))]


def _root(node: ast.expr) -> str | None:
    """The name that an expression such as `a.b[c](d)` begins with."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "func", None) or getattr(node, "value", None)
        if not isinstance(node, ast.expr):
            return None
    return node.id


def _for_types(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _shape(node: Any) -> str:
    """A syntax tree as text, the same for every version of Python; `ast.dump` adds and drops empty fields between versions."""
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = (f"{name}={_shape(value)}" for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"{type(node).__name__}({','.join(parts)})"
