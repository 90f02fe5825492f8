"""How fast things are on this machine: `python -m flownlib.benchmarks zoo · workers · thousand · kills · generation`.

Everything is measured in one run, variants taking turns, so that a busy neighbour slows all alike. Results go to
figures/results/benchmark_<name>_<device>.json.
"""

from __future__ import annotations

import argparse
import sys

import torch

from flownlib.benchmarks.collection import kills, thousand, workers
from flownlib.benchmarks.generation import generation
from flownlib.benchmarks.training import zoo
from flownlib.harness import results
from flownlib.speed import backends

COMMANDS = {
    "zoo": (zoo, 8),
    "workers": (workers, 3),
    "thousand": (thousand, 3),
    "kills": (kills, 20),
    "generation": (generation, 5),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark, print it, store its results."""
    options = argparse.ArgumentParser(prog="python -m flownlib.benchmarks", description=__doc__.splitlines()[0])
    options.add_argument("name", choices=COMMANDS)
    options.add_argument("--rounds", type=int, help="how often everything is measured")
    options.add_argument("--networks", type=int, nargs="+", help="how many at once")
    options.add_argument("--classifier", default="cnn_small")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--no-save", action="store_true", help="print only")
    chosen = options.parse_args(arguments)
    command, rounds = COMMANDS[chosen.name]
    chosen.rounds = chosen.rounds or rounds
    torch.set_num_threads(1)
    backends.keep_freed_memory()
    try:
        made = command(chosen)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not chosen.no_save:
        suffix = "" if chosen.classifier == "cnn_small" else f"_{chosen.classifier}"
        print(f"results: {results.write(f'benchmark_{chosen.name}{suffix}_{chosen.device}', 'tutorial', made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
