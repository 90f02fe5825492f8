"""Worker processes with one thread each, and the work shared among them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

import torch
from tqdm.auto import tqdm

from flownlib.harness.settings import from_environment
from flownlib.speed import backends


def share_jobs(work: Callable[..., object], jobs: Sequence[tuple], workers: int, bar: tqdm) -> None:
    """Call `work(*job)` for every job in this process and `workers` - 1 others, which take seconds to start: it does not wait.

    What the calls return is thrown away; the first one to fail stops the rest.
    """
    with ProcessPoolExecutor(workers - 1, get_context("spawn"), start_child) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            for future, job in zip(reversed(futures), reversed(jobs), strict=True):
                if any(other.done() and not other.cancelled() and other.exception() for other in futures):
                    break
                if future.cancel():  # nobody has begun it
                    work(*job)
                    bar.update()
            for future in as_completed([future for future in futures if not future.cancelled()]):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def set_threads() -> None:
    """As many of torch's threads in this process as the environment variable FLOWN_THREADS says, else one.

    The tutorial's tensors are small: one thread is as fast as several, and several wait for one another, for minutes in
    place of seconds, wherever somebody else is using a core.

    Raises:
        ValueError: if FLOWN_THREADS is no such number.
    """
    torch.set_num_threads(from_environment("FLOWN_THREADS", 1))


def start_worker() -> None:
    """One thread a process: never slower than threads, and twice the processes."""
    torch.set_num_threads(1)
    backends.keep_freed_memory()


def start_child() -> None:
    """`start_worker`, and an end to this process when its parent ends, however abruptly that happens."""
    start_worker()

    def follow(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, args=(parent_process(),), daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """What `start_worker` does, for this process and only for now."""
    threads = torch.get_num_threads()
    start_worker()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_workers() -> int:
    """One worker for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
