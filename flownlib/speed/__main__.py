"""Collect a zoo with many processes, on one machine or several: `torchrun --nproc-per-node 2 -m flownlib.speed …`.

Every process takes its share of the shards, (task, seeds) by (task, seeds), and stores each as soon as it is trained, in
the cache that all of them see. A process that dies loses the shard it was at; starting again goes on from there, and
starting over a finished zoo trains nothing. No process waits for another: whoever stores the last shard puts the zoo together.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flownlib.harness.cache import save_artifact
from flownlib.harness.folders import check_target
from flownlib.harness.settings import check_environment, from_environment, one_line, read_json
from flownlib.speed.collect import collect, collect_shard, draw_images, is_cached
from flownlib.speed.workers import start_worker
from flownlib.speed.zoo_settings import ZooSettings


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="python -m flownlib.speed", description="Collect a zoo with several processes.")
    options.add_argument("--zoo-settings", type=Path, required=True, help="JSON file with the fields of ZooSettings")
    options.add_argument("--output", type=Path, help="folder for the finished zoo (by default it stays in the cache)")
    return options


def read_settings(path: Path) -> ZooSettings:
    """The settings in a JSON file.

    Raises:
        ValueError: if the file is missing, not JSON, or holds something that cannot be.
    """
    try:
        values = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read zoo settings from {path}: {one_line(error)}") from None
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
    """One process's part of the work; returns the exit status: 0 fine, 2 refused or the disk failed."""
    options = parser().parse_args(arguments)
    try:
        collect_with_others(options.zoo_settings, options.output)
    except (ValueError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    return 0


def collect_with_others(path: Path, output: Path | None) -> None:
    """Check everything, train this process's share, and put the zoo together if this process stored the last shard.

    Raises:
        ValueError: for settings, environment variables or an output folder that cannot be, before anything is trained; or if
            the zoo cannot be stored.
    """
    check_environment()
    rank, world_size = from_environment("RANK", 0), from_environment("WORLD_SIZE", 1)
    if rank >= world_size:
        raise ValueError(f"the environment variable RANK ({rank}) has to be less than WORLD_SIZE ({world_size})")
    settings = read_settings(path)
    if output:
        check_target(output)
    draw_images(settings)
    start_worker()
    trained = collect_share(settings, rank, world_size)
    print(f"process {rank} of {world_size}: {trained} shards trained", flush=True)
    if all(is_cached(settings, task, seeds) for task, seeds in settings.shards()):
        zoo = collect(settings, workers=1, progress=False)
        if output:
            save_artifact(output, zoo.as_artifact())
        print(f"{len(zoo)} networks, zoo {zoo.digest()}" + (f" in {output}" if output else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
