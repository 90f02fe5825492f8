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
from flownlib.harness.memory import require_memory
from flownlib.harness.settings import Rule, check_environment, one_line
from flownlib.networks import classifier
from flownlib.speed import backends

ROUNDS = Rule(int, "how often everything is measured", 2, 100_000)  # an interval needs two
NETWORKS = Rule(int, "how many at once", 1, 10_000_000)
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
    options.add_argument("--rounds", help=f"{ROUNDS.meaning}: {ROUNDS.allowed}")
    options.add_argument("--networks", nargs="+", help=f"{NETWORKS.meaning}: {NETWORKS.allowed}")
    options.add_argument("--classifier", default="cnn_small")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--no-save", action="store_true", help="print only")
    wanted = options.parse_args(arguments)
    command, rounds = COMMANDS[wanted.name]
    try:
        check_environment()
        wanted.rounds = rounds if wanted.rounds is None else ROUNDS.parse("--rounds", wanted.rounds)
        wanted.networks = [NETWORKS.parse("--networks", text) for text in wanted.networks or []]
        weights = classifier(wanted.classifier).layout.size
        require_memory({"training (--networks, --classifier)": 16 * weights * max(wanted.networks, default=1)})
        if wanted.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a graphics card, and torch finds none here")
        torch.set_num_threads(1)
        backends.keep_freed_memory()
        records = command(wanted)
    except (ValueError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    if not wanted.no_save:
        suffix = "" if wanted.classifier == "cnn_small" else f"_{wanted.classifier}"
        name = f"benchmark_{wanted.name}{suffix}_{wanted.device}"
        print(f"results: {results.write(name, 'tutorial', records, committed=True)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
