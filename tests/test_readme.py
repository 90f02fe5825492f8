"""What the README says can be done, is done; the numbers that it shows are those of the files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flownlib.harness import report, results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "figures" / "results"
README, TABLES = (ROOT / "README.md").read_text(), (RESULTS / "README.md").read_text()


def test_the_library_in_twenty_lines_runs(capsys) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(block, "README.md", "exec"), {})
    assert "latent_flow" in capsys.readouterr().out


def test_the_numbers_of_both_pages_are_those_of_the_files() -> None:
    assert report.outdated() == [], "write them with: python -m flownlib report"


def test_the_tables_of_a_live_run_can_be_shown(tmp_path) -> None:
    """What `make tutorial` prints at its end, from the notebooks' own results and no study's."""
    for path in RESULTS.glob("[0-9]*.json"):
        shutil.copy(path, tmp_path)
    shown = report.render(tmp_path)
    assert shown.count("(notebook ") >= 5 and "flownlib study" not in shown


def test_every_study_was_run_with_three_seeds_and_is_shown() -> None:
    for path in RESULTS.glob("study_*.json"):
        found = results.read(path.stem)
        assert found["profile"] == "tutorial" and report.maker(path.stem) in TABLES
        few = 1 if path.stem == "study_tuning" else 3  # which chooses, on seed 0
        assert all(len(record["seeds"]) >= few and record["n"] >= 3 for record in found["records"])


def test_every_table_says_how_to_read_it_and_none_leaves_its_bounds() -> None:
    for table in report.contents()[0]:
        assert f"## {table.title}\n\n{table.read}" in TABLES and table.read.endswith(".")
    for name in ("p, weights", "p, behaviour", "accuracy"):
        assert any(name in heading for table in report.contents()[0] for heading in table.columns)
    (p_values,) = [table for table in report.contents()[0] if table.source == "study_generation"]
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", " ".join(_column(p_values.title, "p, weights")))]
    assert len(numbers) > 60 and all(0 <= number <= 1 for number in numbers)


def _column(title: str, heading: str) -> list[str]:
    """The cells of one column of a table."""
    lines = [
        line.strip("| ").split(" | ") for line in TABLES.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if "|" in line
    ]
    return [line[lines[0].index(heading)] for line in lines[2:]]


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_its_make_commands_exist_and_ci_runs_them() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)`", README)) <= targets >= {"tutorial", "test", "lab", "clean", "help"}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text() and "make test" in workflow and "make tutorial" in workflow


@pytest.mark.parametrize(
    ("notebook", "study", "quantity", "method", "margin"),
    [
        ("01_zoo_collection", "zoo", "test_accuracy", "trained", 0.02),
        ("02_vae_training", "encoders", "test_accuracy_mean", "vae", 0.02),
        ("03_flow_matching", "generation", "test_accuracy_mean", "latent_flow", 0.02),
        ("03_flow_matching", "generation", "spread", "latent_flow", 0.05),
        ("05_few_shot_evaluation", "fewshot", "test_accuracy", "plda", 0.03),
        ("07_your_own_zoo", "own", "test_accuracy_mean", "gaussian", 0.02),
        ("07_your_own_zoo", "own", "nearest_training_distance", "flow_all", 0.05),
    ],
)
def test_a_live_run_agrees_with_the_study(notebook, study, quantity, method, margin) -> None:
    def records(name: str) -> dict[str, dict]:
        found = [r for r in results.read(name)["records"] if (r["quantity"], r["method"]) == (quantity, method)]
        numbers = {"networks"} if notebook != "02_vae_training" else set()  # how many, which may differ
        return {str(sorted((k, v) for k, v in r["setting"].items() if k not in numbers)): r for r in found}

    live, many = records(notebook), records(f"study_{study}")
    shared = live.keys() & many.keys()
    assert shared
    for key in shared:  # within the margin of the study's mean, or within its interval over seeds
        distance = abs(live[key]["value"] - many[key]["value"])
        assert distance < max(margin, (many[key]["high"] - many[key]["low"]) / 2), key
