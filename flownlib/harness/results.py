"""Results on disk: records with an interval each, in one vocabulary, and the figures beside them.

Committed results live in figures/, where only benchmarks and `run --in-place` write. A notebook that a reader
runs, by whatever program, writes to build/, or to the folder that the environment variable FLOWN_RESULTS names.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from flownlib.harness.folders import project_root, write_file
from flownlib.harness.memo import Reads
from flownlib.harness.pictures import smaller_png
from flownlib.harness.profiles import PROFILES
from flownlib.harness.settings import one_line, read_json
from flownlib.statistics import Interval


class Quantity(NamedTuple):
    """What a number means, and the least and the most that it can be."""

    unit: str
    least: float = 0
    most: float = math.inf


SHARE, DIFFERENCE = (0, 1), (-1, 1)  # bounds: of an accuracy, a p-value, an overlap; of what one share is above another
# What can be reported, the unit of its value, and its bounds. A new quantity is added here and nowhere else.
QUANTITIES = {
    "test_accuracy": Quantity("fraction of test images, one network or classifier", *SHARE),
    "test_accuracy_mean": Quantity("fraction of test images, mean over networks", *SHARE),
    "test_accuracy_median": Quantity("fraction of test images, median over networks", *SHARE),
    "test_accuracy_best_by_validation": Quantity("fraction of test images, the network that is best by validation", *SHARE),
    "validation_accuracy": Quantity("fraction of validation images, mean over networks", *SHARE),
    "accuracy_gain": Quantity("paired difference of test accuracies", *DIFFERENCE),
    "best_gain": Quantity("test accuracy of the network best by validation, minus the training networks' best", *DIFFERENCE),
    "test_loss_mean": Quantity("loss on test data, mean over networks"),
    "latent_dim": Quantity("numbers in a latent"),
    "numbers": Quantity("numbers that an encoder consists of"),
    "r2": Quantity("fraction of the weights' variance that a reconstruction explains", -math.inf, 1),
    "spread": Quantity("1 = the zoo's"),
    "offset": Quantity("0 = the zoo's mean"),
    "nearest_training_distance": Quantity("1 = held-out networks'"),
    "error_overlap": Quantity("intersection over union of two networks' errors", *SHARE),
    "two_sample_p_weights": Quantity("p-value of samples against held-out networks, in weights", *SHARE),
    "two_sample_p_behaviour": Quantity("p-value of samples against held-out networks, in class probabilities", *SHARE),
    "straightness": Quantity("distance between the ends of a trajectory over its length", *SHARE),
    "solver_steps": Quantity("steps of the solver for one network"),
    "seconds_fit": Quantity("seconds to fit a method"),
    "seconds_sample": Quantity("seconds to draw one network"),
    "model_steps_per_second": Quantity("optimiser steps of one network in a second of processor time (of the clock, on a GPU)"),
    "networks_per_second": Quantity("networks generated, trained or evaluated on 5,000 images in a second of one core"),
    "share_of_peak": Quantity("fraction of this machine's matrix-multiplication rate"),
    "seconds_collect": Quantity("seconds by the clock to collect a zoo"),
    "kills_survived": Quantity("fraction of collections, killed at a random moment, that went on to the same zoo", *SHARE),
    "speedup": Quantity("ratio of two times"),
    "criteria_met": Quantity("of five: accuracy, spread, offset, novelty and error overlap like held-out networks'", 0, 5),
    "frontier_margin": Quantity("accuracy over the best null that is as novel and was trained no further", *DIFFERENCE),
}
RECORD_KEYS = {"quantity", "method", "setting", "value", "low", "high", "n", "seeds"}


def results_folder(profile: str, committed: bool = False) -> Path:
    """Where figures go; their numbers go to its subfolder results/. The smoke profile's are never `committed`."""
    chosen = os.environ.get("FLOWN_RESULTS")
    if chosen:
        return Path(chosen)
    if profile == "smoke":
        return project_root() / "build" / "smoke-figures"
    return project_root() / ("figures" if committed else "build/figures")


def run_folder(profile: str, output: Path, committed: bool = False) -> Path:
    """Where the figures of `python -m flownlib run` go, absolute: beside its executed copies unless they are committed."""
    fixed = committed or os.environ.get("FLOWN_RESULTS")
    return (results_folder(profile, committed) if fixed else output / "figures").resolve()


def record(quantity: str, method: str, setting: Mapping[str, Any], interval: Interval, seeds: Sequence[int]) -> dict[str, Any]:
    """One checked record: what was measured, of which method, under which setting, with its interval (`bounded`) and seeds.

    Raises:
        ValueError: for an infinite interval, a quantity outside the vocabulary or anything else that `check` refuses.
    """
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        raise ValueError(f"{quantity} of {method} has no finite interval: report at least two independent units")
    bounds = {key: round(number, 5) if isinstance(number, float) else number for key, number in asdict(interval).items()}
    made = {"quantity": quantity, "method": method, "setting": dict(setting), **bounds, "seeds": list(seeds)}
    made = bounded(made)
    check(made)
    return made


def bounded(made: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the part of its interval that lies inside the bounds of its quantity.

    A mean of bounded values, such as accuracies or p-values, lies inside their bounds itself, so what is cut off cannot hold
    it: the rest covers the mean exactly as often as the whole of Student's t interval. On another scale, such as the logarithm
    of the odds, an interval would stay inside by itself, but there a value on a bound, such as an accuracy of 1, has no place.
    A value out of bounds stays as it is, for `check` to refuse.
    """
    _, least, most = QUANTITIES.get(made["quantity"], Quantity("", -math.inf))
    return {**made, "low": max(made["low"], min(least, made["value"])), "high": min(made["high"], max(most, made["value"]))}


def cut(made: Mapping[str, Any]) -> bool:
    """Whether the record's interval ends at a bound of its quantity, where `bounded` has cut it."""
    _, least, most = QUANTITIES[made["quantity"]]
    return made["low"] == least < made["value"] or made["value"] < most == made["high"]


def check(made: Mapping[str, Any]) -> None:
    """Refuse a record that does not fit the schema.

    Raises:
        ValueError: naming the record and what is wrong with it.
    """
    if set(made) != RECORD_KEYS:
        raise ValueError(f"a record has the keys {', '.join(sorted(RECORD_KEYS))}, not {', '.join(sorted(map(str, made)))}")
    name = f"the record {made['quantity']!r} of {made['method']!r}"
    if not isinstance(made["quantity"], str) or made["quantity"] not in QUANTITIES:
        raise ValueError(f"{name}: unknown quantity, choose one of {', '.join(QUANTITIES)} or add it to results.QUANTITIES")
    if not isinstance(made["method"], str) or not re.fullmatch(r"[a-z0-9_.]+", made["method"]):
        raise ValueError(f"{name}: a method's name is made of a-z, 0-9, _ and .")
    if not isinstance(made["setting"], dict) or not all(
        isinstance(key, str) and isinstance(value, str | int | float | bool) for key, value in made["setting"].items()
    ):
        raise ValueError(f"{name}: a setting maps names to plain text, numbers or booleans, not {made['setting']!r}")
    _check_numbers(made, name)


def _check_numbers(made: Mapping[str, Any], name: str) -> None:
    bounds = [made["low"], made["value"], made["high"]]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in bounds):
        raise ValueError(f"{name}: value, low and high have to be finite numbers, not {bounds}")
    if bounds != sorted(bounds):
        raise ValueError(f"{name}: needs low <= value <= high, not {bounds}")
    unit, least, most = QUANTITIES[made["quantity"]]
    if bounds[0] < least or bounds[2] > most:
        raise ValueError(f"{name}: {unit}, lies from {least:g} to {most:g}, and so does its interval, not {bounds}")
    if type(made["n"]) is not int or made["n"] < 1:
        raise ValueError(f"{name}: n is a whole number of at least 1, not {made['n']!r}")
    if not isinstance(made["seeds"], list) or not made["seeds"] or not all(type(seed) is int for seed in made["seeds"]):
        raise ValueError(f"{name}: seeds is a list of at least one whole number, not {made['seeds']!r}")


def check_all(records: Sequence[Mapping[str, Any]]) -> None:
    """Check every record, and that no two answer the same question.

    Raises:
        ValueError: naming the first record that is wrong.
    """
    seen = set()
    for made in records:
        check(made)
        address = (made["quantity"], made["method"], json.dumps(made["setting"], sort_keys=True))
        if address in seen:
            raise ValueError(f"two records of {address[0]} of {address[1]} have the same setting {address[2]}: tell them apart")
        seen.add(address)


def write(name: str, profile: str, records: Sequence[Mapping[str, Any]], committed: bool = False, **extra: Any) -> Path:
    """Write records to results/<name>.json in `results_folder(profile, committed)`, all or none; returns the file's path.

    `extra` holds further facts about the run, such as a study's settings and code version.

    Raises:
        ValueError: for a name that is no plain file name, or a record outside the schema.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"a results file is named by a-z, 0-9 and _, not {name!r}")
    check_all(records)
    text = json.dumps({"notebook": name, "profile": profile, **extra, "records": list(records)}, indent=1) + "\n"
    path = results_folder(profile, committed) / "results" / f"{name}.json"
    write_file(path, text.encode())
    return path


def frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Raw records of one seed as a table: one row a record with its quantity, method, settings, and its values' mean and n."""
    rows = [{**raw, **raw["setting"], "mean": fmean(raw["values"]), "n": len(raw["values"])} for raw in records]
    return pd.DataFrame(rows).drop(columns=["setting", "values"])


def seed_file(name: str, seed: int, folder: Path) -> Path:
    """The file of one seed's raw records of a study, in a folder of figures."""
    return folder / "results" / f"study_{name}" / f"seed_{seed}.json"


def _summary(raw: Mapping[str, Any], seed: int) -> dict[str, Any]:
    mean = fmean(raw["values"] or [math.nan])
    return record(raw["quantity"], raw["method"], raw["setting"], Interval(mean, mean, mean, len(raw["values"])), [seed])


def write_seed(name: str, seed: int, settings: Reads, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write one seed's raw records of a study, unrounded, with the settings that were read; returns the file's path.

    Args:
        name: the study's.
        seed: of the study's random numbers.
        settings: as `start.begin` returns them.
        records: {"quantity", "method", "setting", "values"}; the values are of independent units, such as tasks.

    Raises:
        ValueError: for a record outside the schema, or without values.
    """
    check_all([_summary(raw, seed) for raw in records])
    path = seed_file(name, seed, results_folder(settings.profile))
    content = {"study": name, "seed": seed, "settings": settings.read, "records": list(records)}
    write_file(path, json.dumps(content).encode())
    return path


def read(name: str, folder: Path | str | None = None) -> dict[str, Any]:
    """The contents of <name>.json among the committed results or in another folder; intervals are `bounded`, as in new files.

    Raises:
        ValueError: if the file is absent, is no results file, or holds a record outside the schema.
    """
    path = Path(folder or project_root() / "figures" / "results") / f"{name}.json"
    if not path.is_file():
        maker = f"the study {name.removeprefix('study_')}" if name.startswith("study_") else f"notebook {name}"
        raise ValueError(f"there are no results {path.name} yet: run {maker}")
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not a results file ({one_line(error)}): make it again") from None
    try:
        found["records"] = [bounded(made) for made in found["records"]]
        check_all(found["records"])
        PROFILES[found["profile"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is not a results file ({type(error).__name__}): make it again") from None
    return found


def save_figure(figure: Figure, filename: str, profile: str) -> Path:
    """Save a figure as a small PNG in the profile's folder, the same bytes on the same machine; returns its path.

    Raises:
        ValueError: for a file name other than a-z, 0-9, _ and .png.
    """
    if not re.fullmatch(r"[a-z0-9_]+\.png", filename):
        raise ValueError(f"a figure is named by a-z, 0-9 and _ and ends in .png, not {filename!r}")
    path = results_folder(profile) / filename
    buffer = io.BytesIO()
    # without "Software" the file does not change with matplotlib's version alone
    figure.savefig(buffer, format="png", dpi=160, bbox_inches="tight", metadata={"Software": None})
    write_file(path, smaller_png(buffer.getvalue()))
    return path
