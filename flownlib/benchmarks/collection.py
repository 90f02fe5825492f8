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

from flownlib.benchmarks.device import device_name
from flownlib.harness import results
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
        made = collect(settings, workers, progress=False)
        return time.perf_counter() - start, made


def workers(options: argparse.Namespace) -> list[dict]:
    """The same zoo by one worker process and by two, start-up included; equal by hash."""
    networks, ratios = (options.networks or [1000])[0], []
    for seed in range(options.rounds):
        (alone, first), (pair, second) = timed_zoo(networks, 1, "auto", seed), timed_zoo(networks, 2, "auto", seed)
        if first.digest() != second.digest():
            raise RuntimeError(f"one and two workers made different zoos: {first.digest()} and {second.digest()}")
        ratios.append(alone / pair)
        print(
            f"{networks} networks: one worker {alone:.1f} s, two {pair:.1f} s, ratio {alone / pair:.2f}, both {first.digest()}"
        )
    setting = {"workers": 2, "networks": networks, "device": device_name("cpu")}
    return [results.record("speedup", "workers", setting, mean_interval(ratios), list(range(options.rounds)))]


def thousand(options: argparse.Namespace) -> list[dict]:
    """A thousand networks of one task in the tutorial's settings, from nothing, by each backend."""
    made = []
    for backend in (
        ("lanes", "torch") if backends.choose("auto", classifier("cnn_small"), torch.float32) == "lanes" else ("torch",)
    ):
        seconds = [timed_zoo(1000, default_workers(), backend, seed)[0] for seed in range(options.rounds)]
        interval = mean_interval(seconds)
        print(f"1,000 networks, {default_workers()} workers, {backend}: {interval} s by the clock")
        setting = {"networks": 1000, "workers": default_workers(), "device": device_name("cpu")}
        made.append(results.record("seconds_collect", backend, setting, interval, list(range(options.rounds))))
    return made


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
    draw, survived = random.Random(0), 0
    settings = ZooSettings(("latin", "greek"), 80, sizes=SplitSizes(500, 100, 200), training=Training(4, 25))
    shards = len(settings.shards())
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            cache, file, chosen = Path(folder) / f"cache{i}", Path(folder) / "zoo.json", replace(settings, seed=i)
            file.write_text(json.dumps(asdict(chosen)))
            command = [sys.executable, "-m", "flownlib.speed", "--zoo-settings", str(file), "--output", str(cache / "zoo")]
            begun = draw.randrange(shards)
            stored = killed(command, cache, begun, draw.uniform(0, 0.2 if begun else 3))  # the first shard takes a start
            subprocess.run(command, env=os.environ | {"FLOWN_CACHE": str(cache)}, check=True, stdout=subprocess.DEVNULL)
            found, expected = Zoo.from_artifact(load_artifact(cache / "zoo")), collect(chosen, 1, progress=False)
            same = found.digest() == expected.digest() and not found.table.duplicated(["task", "seed"]).any()
            survived += same
            verdict = "the same zoo" if same else "ANOTHER ZOO"
            print(f"kill {i + 1:>2}: {stored:>2} of {shards} shards were stored, then {verdict}", flush=True)
    setting = {"kills": options.rounds, "device": device_name("cpu")}
    return [results.record("kills_survived", "collect", setting, proportion_interval(survived, options.rounds), [0])]
