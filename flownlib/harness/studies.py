"""Studies: what one live run of a notebook cannot show. A notebook of notebooks/studies/ is run once for each of several seeds.

Its last line, `results.write_seed(name, seed, settings, records)`, leaves the seed's raw values; the name is that of the file
without its number. A seed that is done for this code and these settings is not run again. What is reported are intervals
whose unit is the seed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_event_loop

from flownlib.harness import notebooks, profiles, results, runs
from flownlib.harness.closure import fingerprint_of
from flownlib.harness.folders import partial_folder, write_file
from flownlib.harness.notebooks import PARAMETERS, Job
from flownlib.harness.profiles import Profile
from flownlib.harness.settings import read_json
from flownlib.statistics import mean_interval

Raw = list[dict]  # records {"quantity", "method", "setting", "values"}


def is_study(path: Path) -> bool:
    """Whether a notebook is run over seeds."""
    return path.parent.name == notebooks.STUDIES


def name_of(path: Path) -> str:
    """A study's name, "generation" of 03_generation.ipynb."""
    return path.stem.partition("_")[2]


def code_version(path: Path) -> str:
    """16 hex digits: a study's own code, its parameters' defaults left out, and all that it imports."""
    cells = [cell for cell in notebooks.load(path).cells if cell.cell_type == "code"]
    return fingerprint_of("\n".join(cell.source for cell in cells if "parameters" not in cell.metadata.get("tags", [])))


def prepare(path: Path, profile: str, given: Mapping[str, str], seeds: Sequence[str] | None = None) -> list[Job]:
    """A job for each seed given as a text, all checked; without seeds a single one, of the notebook's parameters.

    Raises:
        ValueError: for a seed that is none or is given twice, and what `notebooks.prepare` refuses.
    """
    if seeds is not None and "seed" in given:
        raise ValueError("name the seeds by --seeds, not by -p seed as well")
    job, default = notebooks.prepare(path, profile, given), notebooks.parameters_of(path)["seed"].default
    numbers = [PARAMETERS["seed"].parse("--seeds", text) for text in seeds or []] or [job.parameters.get("seed", default)]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--seeds takes every seed once, not {' '.join(map(str, numbers))}")
    return [replace(job, parameters=job.parameters | {"seed": seed}, suffix=f"_seed_{seed}") for seed in numbers]


def run(
    jobs: Sequence[Job], profile: str, output: Path, timeout: int, committed: bool = False, at_once: int = 1
) -> list[runs.Outcome]:
    """Run one study's jobs, some at once, except those done before, and write study_<name>.json if none failed.

    A seed's file appears when its notebook has run to the end, so that a killed run leaves no half of one.
    """
    path, figures = jobs[0].path, results.run_folder(profile, output, committed)
    name, code = name_of(path), code_version(path)
    files = {job.parameters["seed"]: results.seed_file(name, job.parameters["seed"], figures) for job in jobs}

    with partial_folder(figures) as partial, runs.environment(**runs.variables(profile, partial)):
        settings = profiles.load(profile, jobs[0].parameters.get("overrides"))
        todo = [job for job in jobs if not finished(files[job.parameters["seed"]], code, settings)]

        def outcome_of(job: Job) -> runs.Outcome:
            with closing(ensure_event_loop()):  # this thread's, which papermill would leave open
                outcome, seed = runs.execute(job, output, timeout), job.parameters["seed"]
            if not outcome.error:
                outcome = keep(outcome, results.seed_file(name, seed, partial), files[seed], code)
            return runs.announced(outcome)

        with ThreadPoolExecutor(at_once) as pool:
            outcomes = list(pool.map(outcome_of, todo))
    if not any(outcome.error for outcome in outcomes):
        by_seed = {seed: read_json(file.read_text())["records"] for seed, file in files.items()}
        extra = {"settings": settings.as_dict(), "code_version": code}
        with runs.environment(FLOWN_RESULTS=str(figures)):
            print(f"results: {results.write(f'study_{name}', profile, aggregate(by_seed), **extra)}")
    return outcomes


def finished(file: Path, code: str, settings: Profile) -> bool:
    """Whether a seed's file was made by this code with the same values of the settings that were read."""
    try:
        stored = read_json(file.read_text())
        return stored["code_version"] == code and all(getattr(settings, k) == v for k, v in stored["settings"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def keep(outcome: runs.Outcome, written: Path, file: Path, code: str) -> runs.Outcome:
    """Put the records that a notebook has written in their place, marked with the code that made them."""
    if not written.is_file():
        return replace(outcome, error=f"{outcome.path.stem} wrote no {written.relative_to(written.parents[2])}")
    write_file(file, json.dumps({"code_version": code, **read_json(written.read_text())}).encode())
    return outcome


def aggregate(by_seed: Mapping[int, Raw]) -> list[dict[str, Any]]:
    """Raw values of each seed → records whose unit is the seed: the interval of the seeds' means.

    A study of a single seed has no such interval; its unit is whatever that seed measured, e.g. the task, and what it
    measured only once is left out.
    """
    means = defaultdict(list)
    for records in by_seed.values():
        for raw in records:
            values = raw["values"]
            means[raw["quantity"], raw["method"], json.dumps(raw["setting"])] += (
                values if len(by_seed) == 1 else [sum(values) / len(values)]
            )
    return [
        results.record(quantity, method, json.loads(setting), mean_interval(values), list(by_seed))
        for (quantity, method, setting), values in means.items()
        if len(values) > 1 or len(by_seed) > 1
    ]
