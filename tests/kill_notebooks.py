"""Runs of notebooks 00 to 02 killed at random moments: `python tests/kill_notebooks.py 20`. No test, for it takes an hour.

Each run has a cold cache of its own, is ended by signal 9 with all that it started, and is run again to its end: the records
are to be those of an undisturbed run, and nothing partial may be left.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from flownlib.harness import results

NOTEBOOKS = ("00", "01", "02")
TIMES = {name for name in results.QUANTITIES if "second" in name} | {"speedup"}


def run_notebooks(place: Path, kill_after: float | None = None) -> tuple[dict[str, list], float]:
    """The records of notebooks 00 to 02 in the smoke profile, but for those of time, and how many seconds the run took.

    Cache and results lie in `place`. `kill_after` so many seconds the run is ended by signal 9, with all that it started.
    """
    command = [sys.executable, "-m", "flownlib", "run", *NOTEBOOKS, "--profile", "smoke", "--output", str(place / "run")]
    places, start = {"FLOWN_CACHE": str(place / "cache"), "FLOWN_RESULTS": str(place / "figures")}, time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | places, stdout=subprocess.DEVNULL)
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
    found = {path.stem: results.read(path.stem, path.parent)["records"] for path in place.glob("figures/results/*.json")}
    timeless = {name: [made for made in records if made["quantity"] not in TIMES] for name, records in found.items()}
    return timeless, time.perf_counter() - start


def notebooks_survive(rounds: int) -> int:
    """How many killed runs of notebooks went on to the same records and files, and left nothing partial behind."""
    draw, survived = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        expected, seconds = run_notebooks(Path(folder) / "whole")
        for i in range(rounds):
            place, moment = Path(folder) / f"kill{i}", draw.uniform(0, seconds)
            done = len(run_notebooks(place, moment)[0])
            same, left = run_notebooks(place)[0] == expected, list(place.rglob(".partial-*"))
            survived += same and not left
            verdict = f"the same records: {same}, left partial: {len(left)}"
            print(f"kill {i + 1:>2} after {moment:.0f} of {seconds:.0f} s, {done} notebooks done, then {verdict}", flush=True)
    return survived


if __name__ == "__main__":
    print("survived:", notebooks_survive(int(sys.argv[1])))
