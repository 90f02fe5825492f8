"""Collect a zoo with many processes, on one machine or several: `torchrun --nproc-per-node 2 -m flownlib.speed …`.

Every process takes its share of the shards, (task, seeds) by (task, seeds), and stores each as soon as it is trained, in
the cache that all of them see. A process that dies loses the shard it was at; starting again goes on from there, and
starting over a finished zoo trains nothing. No process waits for another: whoever stores the last shard puts the zoo together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from flownlib.speed.collect import ZooSettings, collect, collect_shard, is_cached
from flownlib.speed.workers import start_worker
from flownlib.tasks import load_task


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="python -m flownlib.speed", description="Collect a zoo with several processes.")
    options.add_argument("--zoo-settings", type=Path, required=True, help="JSON file with the fields of ZooSettings")
    options.add_argument("--output", type=Path, help="folder for the finished zoo (by default it stays in the cache)")
    return options


def read_settings(path: Path) -> ZooSettings:
    """The settings in a JSON file.

    Raises:
        ValueError: if the file is missing, not JSON, or names something that is not a setting.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read zoo settings from {path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings: it should be a JSON object with tasks and networks")
    return ZooSettings.from_json(values).checked()


def collect_share(settings: ZooSettings, rank: int, world_size: int) -> int:
    """Train every `world_size`-th shard that is not stored yet; returns how many were trained."""
    trained = 0
    for task, seeds in settings.shards()[rank::world_size]:
        if not is_cached(settings, task, seeds):
            collect_shard(settings, task, seeds)
            trained += 1
    return trained


def main(arguments: list[str] | None = None) -> int:
    """One process's part of the work; returns the exit status: 0 fine, 2 the request was refused."""
    options = parser().parse_args(arguments)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        settings = read_settings(options.zoo_settings)
        for task in settings.tasks:
            load_task(task, settings.sizes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    start_worker()
    trained = collect_share(settings, rank, world_size)
    print(f"process {rank} of {world_size}: {trained} shards trained", flush=True)
    if all(is_cached(settings, task, seeds) for task, seeds in settings.shards()):
        zoo = collect(settings, workers=1, progress=False)
        if options.output:
            zoo.save(options.output)
        print(f"{len(zoo)} networks, zoo {zoo.digest()}" + (f" in {options.output}" if options.output else ""), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
