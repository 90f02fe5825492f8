"""Running notebooks headlessly: a time limit for each cell, every notebook attempted, minutes and memory at the end."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from flownlib.harness.notebooks import Job, load, write_back

CELL_TIMEOUT = 1800  # seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a job: wall-clock seconds, peak memory, and one sentence where it failed."""

    path: Path
    seconds: float
    peak_gib: float
    error: str | None = None


class Memory(threading.Thread):
    """Watches the resident memory of this process and all below it (kernels and their workers) inside a `with` block.

    Pages that processes share are counted once for each, so `peak_gib` errs on the high side.
    """

    def __init__(self, every: float = 0.5) -> None:
        super().__init__(daemon=True)
        self.every, self.peak, self.done = every, 0, threading.Event()

    @property
    def peak_gib(self) -> float:
        """The largest sum seen, in GiB."""
        return self.peak / 2**30

    def run(self) -> None:
        """Sample until the block ends."""
        this = psutil.Process()
        while not self.done.wait(self.every):
            self.peak = max(self.peak, sum(map(_resident, [this, *this.children(recursive=True)])))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has just ended
        return 0


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the kernels started inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def private_sockets() -> Iterator[Config]:
    """Jupyter settings by which a kernel talks over files in a folder of its own.

    With TCP, two runs started at the same time can be given the same free ports, and wait for each other for ever.
    """
    with tempfile.TemporaryDirectory(prefix="flown-") as folder:
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def quiet() -> bool:
    """Whether a progress bar would only fill a log."""
    return not sys.stderr.isatty() or os.environ.get("CI", "").lower() == "true"


def execute(job: Job, output: Path, timeout: int = CELL_TIMEOUT) -> Outcome:
    """Run one notebook in its own folder into an executed copy in `output`; a failure is returned, not raised."""
    copy, start, error = output / job.path.name, time.perf_counter(), None
    output.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    bar = False if quiet() else {"desc": job.path.stem, "leave": False}
    with Memory() as memory, private_sockets() as config:
        try:
            papermill.execute_notebook(
                job.path,
                copy.resolve(),
                job.parameters,
                kernel_name="python3",
                cwd=job.path.parent,
                progress_bar=bar,
                execution_timeout=timeout,
                config=config,
                extra_arguments=["--log-level=CRITICAL"],  # else the interrupt that ends a kernel looks like an error
            )
        except PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except CellTimeoutError:
            error = f"it ran longer than {timeout} s; allow more with --timeout"
        except (DeadKernelError, RuntimeError) as failure:
            error = f"its kernel died ({failure}); perhaps the memory was not enough"
    if error:
        error = f"{job.path.stem} failed {_failing_cell(copy)}: {error} (executed copy: {copy})"
    return Outcome(job.path, time.perf_counter() - start, memory.peak_gib, error)


def _failing_cell(copy: Path) -> str:
    """Where the last started cell is, counted in the source's code cells, that is, without injected parameters."""
    cells = load(copy).cells if copy.is_file() else []
    code = [cell for cell in cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]
    started = sum(bool(cell.metadata.get("papermill", {}).get("start_time")) for cell in code)
    return f"in code cell {started}" if started else "before its first cell"


def run_all(
    jobs: Sequence[Job], profile: str, output: Path, timeout: int = CELL_TIMEOUT, in_place: bool = False
) -> list[Outcome]:
    """Run every notebook, whatever becomes of the others, and say in a line what became of each.

    Figures and numbers go to `output`/figures, so that a reader's run does not change the committed ones; with
    `in_place` they and the notebooks' outputs are the new committed ones.
    """
    variables = {"FLOWN_PROFILE": profile, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if not in_place:
        variables["FLOWN_RESULTS"] = os.environ.get("FLOWN_RESULTS") or str(output.resolve() / "figures")
    outcomes = []
    for job in jobs:
        with environment(**variables):
            outcome = execute(job, output, timeout)
        if in_place and not outcome.error:
            try:
                write_back(job.path, output / job.path.name)
            except ValueError as error:
                outcome = replace(outcome, error=str(error))
        print(f"{'✗' if outcome.error else '✓'} {job.path.stem}: {outcome.seconds / 60:.1f} min", flush=True)
        if outcome.error:
            print(outcome.error, file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of minutes and peak memory for each notebook, and both in all."""
    rows = [
        (outcome.path.stem, outcome.seconds / 60, outcome.peak_gib, "failed" if outcome.error else "") for outcome in outcomes
    ]
    rows.append(("in all", sum(row[1] for row in rows), max(row[2] for row in rows), ""))
    width = max(len(row[0]) for row in rows)
    heading = f"{'notebook':<{width}}  minutes  peak memory"
    lines = [f"{name:<{width}}  {minutes:7.1f}  {peak:7.1f} GiB  {mark}".rstrip() for name, minutes, peak, mark in rows]
    return "\n".join([heading, *lines])
