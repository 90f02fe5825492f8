"""The command line: `python -m flownlib run · study · report · doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m flownlib", description="Run the FLoWN tutorial.")
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run notebooks headlessly, all of them by default")
    run.add_argument("notebooks", nargs="*", help="numbers, stems or paths, e.g. 03 or notebooks/03_flow_matching.ipynb")
    run.add_argument("--profile", help="smoke (seconds), tutorial (minutes on a laptop, the default) or paper (GPU)")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter or setting")
    run.add_argument("--output", type=Path, help="folder of the executed copies (default: build/notebooks)")
    run.add_argument("--timeout", type=int, default=1800, help="seconds that one cell may take (default: 1800)")
    run.add_argument("--in-place", action="store_true", help="make this run the committed one: outputs, figures, numbers")

    study = commands.add_parser("study", help="many seeds of one question, resumable")
    study.add_argument("name", nargs="?", help="which study; leave it out for a list")
    study.add_argument("--profile", help="smoke, tutorial (the default) or paper")
    study.add_argument("--seeds", type=int, help="how many (default: the profile's)")

    report = commands.add_parser("report", help="write the README's results from figures/results")
    how = report.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    how.add_argument("--print", action="store_true", help="print the tables instead")
    report.add_argument("--results", type=Path, help="show the live runs in this folder (with --print)")

    commands.add_parser("doctor", help="check this machine")
    return top


def profile_of(options: argparse.Namespace) -> str:
    """The profile asked for on the command line, else by FLOWN_PROFILE, else the tutorial's."""
    return options.profile or os.environ.get("FLOWN_PROFILE") or "tutorial"


def run(options: argparse.Namespace) -> int:
    """Check everything, run the notebooks, print minutes and memory; returns 1 if one failed."""
    from flownlib.harness import notebooks, runs
    from flownlib.harness.cache import project_root

    profile = profile_of(options)
    if options.in_place and (options.parameters or profile != "tutorial"):
        raise ValueError("--in-place makes committed outputs: only the tutorial profile, and no -p")
    given = dict(split(text) for text in options.parameters)
    with runs.environment(FLOWN_PROFILE=profile):
        paths = [notebooks.find(name) for name in options.notebooks] or notebooks.available()
        if not paths:
            raise ValueError("there are no notebooks in the folder notebooks/")
        jobs = [notebooks.prepare(path, profile, given) for path in dict.fromkeys(paths)]
    output = options.output or project_root() / "build" / "notebooks"
    outcomes = runs.run_all(jobs, profile, output, options.timeout, options.in_place)
    print(runs.summary(outcomes))
    return int(any(outcome.error for outcome in outcomes))


def split(text: str) -> tuple[str, str]:
    """ "name=value" → ("name", "value").

    Raises:
        ValueError: if there is no "=".
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"-p takes name=value, not {text!r}")
    return name, value


def study(options: argparse.Namespace) -> int:
    """Run a study and say where its results are, or list the studies."""
    from flownlib.harness import studies
    from flownlib.harness import runs

    if options.name is None:
        for name, known in studies.STUDIES.items():
            print(f"{name:<16} about {known.minutes:g} minutes: {known.about}")
        return 0
    profile = profile_of(options)
    with runs.environment(FLOWN_PROFILE=profile):
        print(f"results: {studies.run(options.name, profile, options.seeds)}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Print, check or write the README's results; returns 1 if a check finds a difference."""
    from flownlib.harness import report as tables

    if options.print:
        print(tables.render(options.results))
        return 0
    if options.results:
        raise ValueError("the README shows the committed results; use --print with --results")
    if tables.in_sync():
        print("README.md shows the results")
        return 0
    if options.check:
        print("README.md and figures/results differ: run `python -m flownlib report`", file=sys.stderr)
        return 1
    tables.update()
    print("README.md updated")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check this machine."""
    from flownlib.harness import doctor as checks

    return checks.main()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 fine, 1 something failed, 2 the request was refused."""
    options = parser().parse_args(arguments)
    try:
        return {"run": run, "study": study, "report": report, "doctor": doctor}[options.command](options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"the package {error.name} is missing: run `python -m flownlib doctor`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished parts are in the cache, so the same command goes on from there", file=sys.stderr)
        return 130
