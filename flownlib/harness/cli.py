"""The command line: `python -m flownlib run · report · settings · doctor`."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from flownlib.harness.profiles import Profile
from flownlib.harness.settings import ENVIRONMENT, Rule, check_environment, from_environment, one_line, rows, shown, table

TIMEOUT = Rule(int, "seconds that one cell may take", 1, 10_000_000)
JOBS = Rule(int, "seeds of a study that are run at once", 1, 1024)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m flownlib", description="Run the FLoWN tutorial.")
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run notebooks headlessly, all of them by default")
    run.add_argument("notebooks", nargs="*", help="numbers, stems or paths, e.g. 03 or studies/03_generation")
    run.add_argument("--seeds", nargs="+", help="of a study; seeds that are done for this code and these settings are kept")
    run.add_argument("--jobs", help=f"{JOBS.meaning}: {JOBS.allowed} (default: 1)")
    run.add_argument("--profile", help="smoke (seconds), tutorial (minutes on a laptop, the default) or paper (GPU)")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter or setting")
    run.add_argument("--output", type=Path, help="folder of the executed copies (default: build/notebooks)")
    run.add_argument("--timeout", default="1800", help=f"{TIMEOUT.meaning}: {TIMEOUT.allowed} (default: 1800)")
    run.add_argument("--in-place", action="store_true", help="make this run the committed one: outputs, figures, numbers")

    report = commands.add_parser("report", help="write the README's claims and figures/results/README.md from the results")
    how = report.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only say whether both are up to date")
    how.add_argument("--print", action="store_true", help="print the tables instead")
    report.add_argument("--results", type=Path, help="show the live runs in this folder (with --print)")

    commands.add_parser("settings", help="list all settings: name, default, range, meaning")
    commands.add_parser("doctor", help="check this machine")
    return top


def profile_of(options: argparse.Namespace) -> str:
    """The profile asked for on the command line, else by FLOWN_PROFILE, else the tutorial's."""
    if options.profile is None:
        return from_environment("FLOWN_PROFILE", "tutorial")
    return ENVIRONMENT["FLOWN_PROFILE"].check("--profile", options.profile)


def run(options: argparse.Namespace) -> int:
    """Check everything, run the notebooks, print minutes and memory; returns 1 if one failed."""
    from flownlib.harness import notebooks, runs, studies
    from flownlib.harness.folders import claim, project_root

    profile = profile_of(options)
    if options.in_place and (options.parameters or profile != "tutorial"):
        raise ValueError("--in-place makes committed outputs: only the tutorial profile, and no -p")
    given, timeout = pairs(options.parameters), TIMEOUT.parse("--timeout", options.timeout)
    at_once = JOBS.parse("--jobs", options.jobs or "1")
    with runs.environment(FLOWN_PROFILE=profile):
        paths = list(dict.fromkeys([notebooks.find(name) for name in options.notebooks] or notebooks.available()))
        if not paths:
            raise ValueError("there are no notebooks in the folder notebooks/")
        if (options.seeds or options.jobs) and not all(map(studies.is_study, paths)):
            raise ValueError("--seeds and --jobs are for studies: name some of notebooks/studies/, e.g. studies/03_generation")
        lives = [notebooks.prepare(path, profile, given) for path in paths if not studies.is_study(path)]
        seeded = [studies.prepare(path, profile, given, options.seeds) for path in paths if studies.is_study(path)]
    output = options.output or project_root() / "build" / "notebooks"
    runs.check_copies([*lives, *(job for jobs in seeded for job in jobs)], output)
    claim(output, default=options.output is None)
    outcomes = runs.run_all(lives, profile, output, timeout, options.in_place)
    for jobs in seeded:
        outcomes += studies.run(jobs, profile, output, timeout, options.in_place, at_once)
    print(runs.summary(outcomes))
    return int(any(outcome.error for outcome in outcomes))


def pairs(texts: list[str]) -> dict[str, str]:
    """["name=value", …] → {"name": "value", …}.

    Raises:
        ValueError: for a text without "=", or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in found:
            raise ValueError(f"-p takes name=value, once for each name, not {shown(text)}")
        found[name] = value
    return found


def report(options: argparse.Namespace) -> int:
    """Print the tables, or check or write both pages with results; returns 1 if a check finds a difference."""
    from flownlib.harness import report as tables

    if options.print:
        print(tables.render(options.results))
        return 0
    if options.results:
        raise ValueError("both pages show the committed results; use --print with --results")
    outdated = tables.outdated()
    if outdated and options.check:
        print(f"figures/results says otherwise than {' and '.join(outdated)}: run `python -m flownlib report`", file=sys.stderr)
        return 1
    if outdated:
        tables.update()
    print(f"{' and '.join(outdated)} updated" if outdated else "README.md and figures/results/README.md are up to date")
    return 0


def settings(options: argparse.Namespace) -> int:
    """List every setting: the profile's, a zoo's, and the environment's."""
    from flownlib.speed.plan import Training
    from flownlib.speed.zoo_settings import ZooSettings
    from flownlib.tasks.base import SplitSizes

    print("Settings of the profiles, with the tutorial's values: -p NAME=VALUE, or overrides in a notebook" + table(Profile))
    kinds = {"": ZooSettings, '"sizes": ': SplitSizes, '"training": ': Training}
    print("\nFields of zoo.json, beside the list tasks", *[f"\n{name}\n{table(kind)}" for name, kind in kinds.items()], sep="")
    print("\nEnvironment variables\n" + rows((name, rule, "") for name, rule in ENVIRONMENT.items()))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check this machine."""
    from flownlib.harness import doctor as checks

    return checks.main()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 fine, 1 something failed, 2 the request was refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot print ✓ prints ?
    options = parser().parse_args(arguments)
    commands = {"run": run, "report": report, "settings": settings, "doctor": doctor}
    try:
        check_environment()
        return commands[options.command](options)
    except (ValueError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"the package {error.name} is missing: run `python -m flownlib doctor`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished parts are in the cache, so the same command goes on from there", file=sys.stderr)
        return 130
