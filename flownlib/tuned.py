"""The settings that `python -m flownlib study tuning` chose for the comparison of notebook 03; a test holds them to its results."""

from __future__ import annotations

from typing import Any

TUNED: dict[str, dict[str, dict[str, Any]]] = {"shared": {}, "independent": {}}


def tuned(kind: str, method: str) -> dict[str, Any]:
    """The choice among `recipes_generation.GRID` with the best validation accuracy on that kind of zoo."""
    return TUNED[kind][method]
