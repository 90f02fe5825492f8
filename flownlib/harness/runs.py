"""Running notebooks headlessly: a time limit for each cell, every notebook attempted, minutes and memory at the end."""

from __future__ import annotations

import json
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

from flownlib.harness import results
from flownlib.harness.folders import cache_root, partial_folder
from flownlib.harness.notebooks import Job, load, write_back

CELL_TIMEOUT = 1800  # seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its executed copy, wall-clock seconds, peak memory, and one sentence where it failed."""

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
    with partial_folder(Path(tempfile.gettempdir())) as folder:
        folder.chmod(0o700)  # whoever can reach a kernel can run code in it
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def quiet() -> bool:
    """Whether a progress bar would only fill a log."""
    return not sys.stderr.isatty() or os.environ.get("CI", "").lower() == "true"


def execute(job: Job, output: Path, timeout: int = CELL_TIMEOUT) -> Outcome:
    """Run one notebook in its own folder into an executed copy in `output`; a failure is returned, not raised.

    The copy is put there when the run is over, so that a killed run leaves no half of one.
    """
    copy, start, error = output / job.copy, time.perf_counter(), None
    bar = False if quiet() else {"desc": job.path.stem, "leave": False}
    with Memory() as memory, private_sockets() as config, partial_folder(output) as partial:
        made = partial / copy.name
        try:
            papermill.execute_notebook(
                job.path,
                made.resolve(),
                job.parameters,
                kernel_name="python3",
                cwd=job.path.parent,
                progress_bar=bar,
                execution_timeout=timeout,
                iopub_timeout=timeout or CELL_TIMEOUT,  # on a busy machine pictures come long after the reply
                config=config,
                extra_arguments=["--log-level=CRITICAL"],  # else the interrupt that ends a kernel looks like an error
            )
        except PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except CellTimeoutError:
            name = min(str(job.path), os.path.relpath(job.path), key=len)
            again = f"python -m flownlib run {name} --timeout {2 * timeout}"
            error = f"it ran longer than {timeout} s, the limit for one cell; run the notebook alone and with more: {again}"
        except (DeadKernelError, RuntimeError) as failure:
            error = f"its kernel died ({failure}); perhaps the memory was not enough"
        except OSError as failure:
            error = f"{output} cannot be written ({failure.strerror or failure}): make room there or name another folder"
        if made.is_file():
            os.replace(made, copy)
    if error:
        error = f"{job.path.stem} failed {_failing_cell(copy)}: {error} (executed copy: {copy})"
    return Outcome(copy, time.perf_counter() - start, memory.peak_gib, error)


def _failing_cell(copy: Path) -> str:
    """Where the last started cell is, counted in the source's code cells (not the injected parameters), and its first line."""
    cells = load(copy).cells if copy.is_file() else []
    code = [cell for cell in cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]
    started = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    if not started:
        return "before its first cell"
    first_line = started[-1].source.strip().partition("\n")[0]
    return f"in code cell {len(started)} (`{first_line[:60]}`)"


def check_copies(jobs: Sequence[Job], output: Path) -> None:
    """Refuse executed copies that would overwrite a notebook, or anything else that is not an executed copy itself.

    Raises:
        ValueError: naming the file.
    """
    names = [job.copy.casefold() for job in jobs]  # one file on some disks
    for job in jobs:
        copy = output / job.copy
        if names.count(job.copy.casefold()) > 1:
            raise ValueError(
                f"two of the notebooks are called {job.path.name}, and so would be their copies: run one at a time"
            )
        if copy.exists() and any(copy.samefile(other.path) for other in jobs):
            raise ValueError(f"the executed copy would overwrite the notebook {copy} itself: name another folder by --output")
        if os.path.lexists(copy) and not _is_executed_copy(copy):
            raise ValueError(f"{copy} is not an executed copy and stays as it is: name another folder by --output")


def _is_executed_copy(path: Path) -> bool:
    """Whether papermill wrote this file."""
    try:
        return not path.is_symlink() and "papermill" in json.loads(path.read_bytes())["metadata"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def run_all(
    jobs: Sequence[Job], profile: str, output: Path, timeout: int = CELL_TIMEOUT, in_place: bool = False
) -> list[Outcome]:
    """Run every notebook, whatever becomes of the others, and say in a line what became of each.

    Figures and numbers go to `output`/figures, or where FLOWN_RESULTS says, so that a reader's run does not change the
    committed ones; with `in_place` they and the notebooks' outputs are the new committed ones.
    """
    chosen = results.run_folder(profile, output, in_place)
    outcomes = []
    for job in jobs:
        with environment(**variables(profile, chosen)):
            outcome = execute(job, output, timeout)
        if in_place and not outcome.error:
            try:
                write_back(job.path, output / job.path.name)
            except ValueError as error:
                outcome = replace(outcome, error=str(error))
        outcomes.append(announced(outcome))
    return outcomes


def variables(profile: str, figures: Path) -> dict[str, str]:
    """What every kernel is told by its environment; `figures` is absolute, for a kernel stands elsewhere."""
    places = {"FLOWN_RESULTS": str(figures), "FLOWN_CACHE": str(cache_root().resolve())}
    return {"FLOWN_PROFILE": profile, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **places}


def announced(outcome: Outcome) -> Outcome:
    """The outcome, after a line that says what became of the job."""
    print(f"{'✗' if outcome.error else '✓'} {outcome.path.stem}: {outcome.seconds / 60:.1f} min", flush=True)
    if outcome.error:
        print(outcome.error, file=sys.stderr, flush=True)
    return outcome


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of minutes and peak memory for each notebook, and both in all."""
    rows = [
        (outcome.path.stem, outcome.seconds / 60, outcome.peak_gib, "failed" if outcome.error else "") for outcome in outcomes
    ]
    rows.append(("in all", sum(row[1] for row in rows), max((row[2] for row in rows), default=0.0), ""))
    width = max(len(row[0]) for row in rows)
    heading = f"{'notebook':<{width}}  minutes  peak memory"
    lines = [f"{name:<{width}}  {minutes:7.1f}  {peak:7.1f} GiB  {mark}".rstrip() for name, minutes, peak, mark in rows]
    return "\n".join([heading, *lines])
