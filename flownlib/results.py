"""Where numbers and figures go: one record format, one vocabulary, one file a notebook or study."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flownlib.artifacts import project_root
from flownlib.statistics import Interval

QUANTITIES = frozenset(
    """test_accuracy test_accuracy_mean test_accuracy_median test_accuracy_best_by_validation accuracy_gain test_loss_mean
    negative_log_likelihood spread offset nearest_training_distance error_overlap r2 speedup seconds_fit
    networks_per_second""".split()
)
KEYS = ("quantity", "method", "setting", "value", "low", "high", "n", "seeds")


def record(quantity: str, method: str, setting: Mapping[str, Any], interval: Interval, seeds: Sequence[int]) -> dict:
    """One row of a results file.

    Raises:
        ValueError: if the interval is unbounded, as it is for a single unit, or the row is not well formed.
    """
    row = {"quantity": quantity, "method": method, "setting": dict(setting), **interval.as_record(), "seeds": list(seeds)}
    _check(row)
    return row


def _check(row: Mapping[str, Any]) -> None:
    if tuple(row) != KEYS:
        raise ValueError(f"a record has the keys {', '.join(KEYS)}, this one has {', '.join(row)}")
    if row["quantity"] not in QUANTITIES:
        raise ValueError(f"there is no quantity {row['quantity']!r}; the vocabulary is {', '.join(sorted(QUANTITIES))}")
    if not re.fullmatch(r"[a-z0-9_.]+", row["method"]):
        raise ValueError(f"a method's name has lower-case letters, digits, dots and underscores, not {row['method']!r}")
    if not all(math.isfinite(row[key]) for key in ("value", "low", "high")):
        raise ValueError(f"{row['quantity']} of {row['method']} has no finite interval; report at least two units")
    if not row["low"] <= row["value"] <= row["high"] or row["n"] < 1:
        raise ValueError(f"{row['quantity']} of {row['method']} lies outside its own interval or has n = {row['n']}")


def output_folder(profile: str) -> Path:
    """Where results go: FLOWN_RESULTS if set; a scratch folder for the smoke profile; else the project's figures/."""
    if os.environ.get("FLOWN_RESULTS"):
        return Path(os.environ["FLOWN_RESULTS"])
    return project_root() / "build" / "smoke" if profile == "smoke" else project_root() / "figures"


def write(name: str, profile: str, records: Sequence[Mapping[str, Any]], **extra: Any) -> Path:
    """Write results/<name>.json below the output folder, all or nothing.

    Raises:
        ValueError: if a record is not well formed, or there is none.
    """
    if not records:
        raise ValueError(f"{name} has no record to write")
    for row in records:
        _check(row)
    path = output_folder(profile) / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"notebook": name, "profile": profile, "records": list(records), **extra}, indent=1) + "\n")
    partial.replace(path)
    return path


def read(name: str) -> dict:
    """The committed results of a notebook or study.

    Raises:
        ValueError: if there are none.
    """
    path = project_root() / "figures" / "results" / f"{name}.json"
    if not path.is_file():
        command = f"study {name.removeprefix('study_')}" if name.startswith("study_") else f"run {name[:2]}"
        raise ValueError(f"{path.name} does not exist yet; `python -m flownlib {command}` makes it")
    return json.loads(path.read_text())


def save_figure(figure: Figure, filename: str, profile: str) -> Path:
    """Save a PNG below the output folder, at the size it has in the notebook."""
    path = output_folder(profile) / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight", metadata={"Software": None})
    return path
