"""How every notebook begins, after its parameters cell: `settings = start.begin(globals())`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from flownlib.harness import notebooks, profiles
from flownlib.harness.memo import Reads
from flownlib.harness.notebooks import Parameter
from flownlib.harness.settings import check_environment
from flownlib.plots import style as figures
from flownlib.speed import workers

INJECTED = "# Parameters"  # the first line of the cell that papermill puts after the parameters cell
USUAL = {
    "profile": Parameter("profile", str, ""),
    "seed": Parameter("seed", int, 0),
    "overrides": Parameter("overrides", dict, {}),
}


def begin(namespace: dict[str, Any]) -> Reads:
    """The settings that a notebook's parameters ask for, and which of them it reads; sets figures' style and the threads.

    The parameters may come from the parameters cell or from papermill, whose own `-p` checks neither names nor types. They
    are checked as `python -m flownlib run -p` does, and written back: a text such as "3" as the number that is meant.

    Args:
        namespace: the notebook's variables, `globals()`.

    Raises:
        ValueError: for an unknown parameter, a value of the wrong type or out of range, or a parameters cell that was not run.
    """
    check_environment()
    known, injected = parameters_in(namespace.get("In", []))
    names = [*known, *(name for name in injected if name not in known)]
    if missing := [name for name in names if name not in namespace]:
        raise ValueError(f"run the parameters cell first: there is no {missing[0]} yet")
    values = notebooks.settle(known, {name: namespace[name] for name in names}, "this notebook")
    settings = profiles.load(values["profile"], values["overrides"])
    namespace.update(values)
    figures.use_style()
    workers.set_threads()
    return Reads(settings, {})


def parameters_in(cells: Sequence[str]) -> tuple[dict[str, Parameter], list[str]]:
    """What the cells run so far declare as parameters, and the names that papermill's cell sets.

    A parameters cell that was edited into something else declares the usual ones, and then no name is unknown.
    """
    known, injected = {}, []
    for source in cells:
        try:
            found = notebooks.declared(source)
            known = found if USUAL.keys() <= found.keys() else known
        except ValueError:
            if source.lstrip().startswith(INJECTED):
                injected = [line.targets[0].id for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return (known, injected) if known else (USUAL, [])
