"""How fast whole zoos are collected: by workers, a thousand networks, and after being killed."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from flownlib.benchmarks.measurements import Measurements, usable_backends
from flownlib.harness.cache import load_artifact
from flownlib.networks import classifier
from flownlib.speed import backends, lanes
from flownlib.speed.collect import collect
from flownlib.speed.plan import Training
from flownlib.speed.workers import default_workers
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.statistics import mean_interval, proportion_interval
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes
from flownlib.zoo import Zoo


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache of its own for what is timed, which holds only the tasks' images and the compiled kernels."""
    before = os.environ.get("FLOWN_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLOWN_CACHE"] = folder
        try:
            load_task("latin", SplitSizes())
            backends.why_not_lanes.cache_clear()
            lanes.kernel.cache_clear()
            backends.choose("auto", classifier("cnn_small"), torch.float32)
            yield Path(folder)
        finally:
            os.environ.pop("FLOWN_CACHE")
            if before is not None:
                os.environ["FLOWN_CACHE"] = before


def timed_zoo(networks: int, workers: int, backend: str, seed: int) -> tuple[float, Zoo]:
    """Seconds by the clock, from nothing, and the zoo."""
    settings = ZooSettings(("latin",), networks, backend=backend, seed=seed)
    with empty_cache():
        start = time.perf_counter()
        zoo = collect(settings, workers, progress=False)
        return time.perf_counter() - start, zoo


def workers(options: argparse.Namespace) -> list[dict]:
    """The same zoo by one worker process and by two, start-up included; equal by hash."""
    networks, ratios, measured = (options.networks or [1000])[0], [], Measurements()
    for seed in range(options.rounds):
        (alone, first), (pair, second) = timed_zoo(networks, 1, "auto", seed), timed_zoo(networks, 2, "auto", seed)
        if first.digest() != second.digest():
            raise RuntimeError(f"one and two workers made different zoos: {first.digest()} and {second.digest()}")
        ratios.append(alone / pair)
    measured.add("speedup", "workers", mean_interval(ratios), range(options.rounds), workers=2, networks=networks)
    return measured


def thousand(options: argparse.Namespace) -> list[dict]:
    """A thousand networks of one task in the tutorial's settings, from nothing, by each backend."""
    measured, seeds, count = Measurements(), range(options.rounds), default_workers()
    for backend in usable_backends():
        seconds = mean_interval([timed_zoo(1000, count, backend, seed)[0] for seed in seeds])
        measured.add("seconds_collect", backend, seconds, seeds, networks=1000, workers=count)
    return measured


def killed(command: list[str], cache: Path, shards: int, delay: float) -> int:
    """Run a command until it has stored so many shards in its cache, kill it (signal 9) `delay` seconds later.

    Returns:
        How many shards were stored when it was gone.
    """
    process = subprocess.Popen(command, env=os.environ | {"FLOWN_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(cache.glob("zoo-shard-*"))) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()
    return len(list(cache.glob("zoo-shard-*")))


def kills(options: argparse.Namespace) -> list[dict]:
    """Collections killed with signal 9 at random moments: each has to go on to the zoo that is made undisturbed."""
    draw, survived, measured = random.Random(0), 0, Measurements()
    settings = ZooSettings(("latin", "greek"), 80, sizes=SplitSizes(500, 100, 200), training=Training(4, 25))
    shards = len(settings.shards())
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            cache, file, own = Path(folder) / f"cache{i}", Path(folder) / "zoo.json", replace(settings, seed=i)
            file.write_text(json.dumps(asdict(own)))
            command = [sys.executable, "-m", "flownlib.speed", "--zoo-settings", str(file), "--output", str(cache / "zoo")]
            begun = draw.randrange(shards)
            stored = killed(command, cache, begun, draw.uniform(0, 0.2 if begun else 3))  # the first shard takes a start
            subprocess.run(command, env=os.environ | {"FLOWN_CACHE": str(cache)}, check=True, stdout=subprocess.DEVNULL)
            resumed, expected = Zoo.from_artifact(load_artifact(cache / "zoo")), collect(own, 1, progress=False)
            same = resumed.digest() == expected.digest() and not resumed.table.duplicated(["task", "seed"]).any()
            survived += same
            verdict = "the same zoo" if same else "ANOTHER ZOO"
            print(f"kill {i + 1:>2}: {stored:>2} of {shards} shards were stored, then {verdict}", flush=True)
    measured.add("kills_survived", "collect", proportion_interval(survived, options.rounds), kills=options.rounds)
    return measured
