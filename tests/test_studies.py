"""Studies: notebooks that are run once a seed, go on where they stopped, and are reported with the seed as the unit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import nbformat
import pytest

from flownlib.harness import cli, closure, notebooks, profiles, results, runs, studies
from flownlib.harness.memo import Reads

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks" / "studies").glob("*.ipynb"))
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.json"))
PARAMETERS = 'profile: str = "tutorial"  # of settings\nseed: int = 4  # of all\noverrides: dict = {}  # of the profile'
# a study that needs nothing of ours and says on disk which seeds it ran
PLAIN = """
import json, os, pathlib, time
folder = pathlib.Path(os.environ["FLOWN_RESULTS"]) / "results" / "study_tiny"
folder.mkdir(parents=True, exist_ok=True)
with open("ran.txt", "a") as file: print(seed, file=file)
record = {"quantity": "test_accuracy", "method": "soup", "setting": {}, "values": [seed / 10, 0.5]}
time.sleep(60 if seed == 9 and os.path.exists("slow") else 0)
(folder / f"seed_{seed}.json").write_text(json.dumps({"seed": seed, "settings": {}, "records": [record]}))
"""


def raw(*values: float, **setting: int) -> dict:
    """A raw record."""
    return {"quantity": "test_accuracy", "method": "soup", "setting": setting, "values": list(values)}


def write_notebook(path: Path, source: str) -> Path:
    """A study with this code."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study in a folder of its own."""
    for name in ("FLOWN_PROFILE", "FLOWN_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    return write_notebook(tmp_path / "studies" / "10_tiny.ipynb", PLAIN)


@pytest.fixture
def ran(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that were run, here and without a kernel: each reads one setting; seed 13 fails."""
    seeds = []

    def execute(job: notebooks.Job, output: Path, timeout: int) -> runs.Outcome:
        seed, settings = job.parameters["seed"], Reads(profiles.load("smoke", job.parameters.get("overrides")), {})
        seeds.append(seed)
        if seed != 13:
            results.write_seed("tiny", seed, settings, [raw(seed / 10, settings.epochs / 10)])
        return runs.Outcome(output / job.copy, 0, 0, "it failed" if seed == 13 else None)

    monkeypatch.setattr(runs, "execute", execute)
    return seeds


@pytest.fixture
def run(path: Path, tmp_path: Path) -> Callable[..., int]:
    """The command `run` of that study, in the smoke profile, with further arguments."""
    return lambda *more: cli.main(["run", str(path), "--profile", "smoke", "--output", str(tmp_path / "out"), *more])


def seed_file(tmp_path: Path, seed: int) -> Path:
    return tmp_path / "out" / "figures" / "results" / "study_tiny" / f"seed_{seed}.json"


def aggregated(tmp_path: Path) -> dict:
    return results.read("study_tiny", tmp_path / "out" / "figures" / "results")


# what is reported


def test_the_seed_is_the_unit() -> None:
    (row,) = studies.aggregate({3: [raw(0.1, 0.3)], 5: [raw(0.4)], 6: [raw(0.6)]})
    assert row["value"] == pytest.approx(0.4) and row["n"] == 3 and row["seeds"] == [3, 5, 6]


def test_a_single_seed_has_the_units_that_it_measured() -> None:
    (row,) = studies.aggregate({7: [raw(0.1, 0.3, shot=1), raw(0.5, shot=5)]})
    assert (row["n"], row["seeds"], row["setting"]) == (2, [7], {"shot": 1}), "one value has no interval"


def test_the_file_of_the_study_holds_settings_code_and_seeds(run, ran, tmp_path, path) -> None:
    assert run("--seeds", "0", "2") == 0
    found = aggregated(tmp_path)
    (row,) = found["records"]
    assert found["profile"] == "smoke" and found["code_version"] == studies.code_version(path)
    assert found["settings"] == profiles.PROFILES["smoke"].as_dict()
    epochs = profiles.PROFILES["smoke"].epochs
    assert row["seeds"] == [0, 2] and row["value"] == pytest.approx(fmean([0, epochs / 10, 0.2, epochs / 10]))
    assert not list((tmp_path / "out" / "figures").glob(".*")), "nothing unfinished is left"


def test_without_seeds_it_is_the_one_of_the_parameters(run, ran) -> None:
    assert run() == run("-p", "seed=6") == 0
    assert ran == [4, 6]


# what is not run again


def test_a_finished_seed_is_not_run_again(run, ran, tmp_path) -> None:
    assert run("--seeds", "0", "1") == run("--seeds", "2", "1", "0") == 0
    assert ran == [0, 1, 2] and aggregated(tmp_path)["records"][0]["seeds"] == [2, 1, 0]


def test_a_setting_that_was_read_counts_and_another_does_not(run, ran, tmp_path) -> None:
    for more in ((), ("-p", "flow_steps=9"), ("-p", "epochs=5"), ("-p", "epochs=5")):
        assert run("--seeds", "0", *more) == 0
    assert ran == [0, 0] and aggregated(tmp_path)["settings"]["epochs"] == 5
    assert json.loads(seed_file(tmp_path, 0).read_text())["settings"] == {"epochs": 5, "profile": "smoke"}


@pytest.mark.parametrize(
    ("source", "again"),
    [(f"# a comment{PLAIN}", False), (f"{PLAIN}x = 1", True), (f"from flownlib import flow{PLAIN}", True)],
)
def test_the_code_counts_and_a_comment_does_not(run, ran, path, source, again) -> None:
    assert run("--seeds", "0") == 0
    write_notebook(path, source)
    assert run("--seeds", "0") == 0
    assert ran == [0] + [0] * again


def test_the_code_of_what_it_imports_counts(monkeypatch) -> None:
    study = notebooks.find("studies/03_generation")
    before, parsed = studies.code_version(study), closure._parsed
    for module, counts in (("flownlib.flow", True), ("flownlib.extensions.fewshot", False), ("flownlib.plots.style", False)):
        with monkeypatch.context() as patch:
            edited = {module: replace(parsed(module), digest="edited")}
            patch.setattr(closure, "_parsed", lambda name, edited=edited: edited.get(name) or parsed(name))
            closure.fingerprint.cache_clear()
            assert (studies.code_version(study) != before) == counts, module
    closure.fingerprint.cache_clear()


@pytest.mark.parametrize("text", ["", "[]", '{"records": []}', '{"code_version": 3, "settings": []}'])
def test_a_damaged_file_is_made_again(run, ran, tmp_path, text) -> None:
    assert run("--seeds", "0") == 0
    whole = seed_file(tmp_path, 0).read_text()
    seed_file(tmp_path, 0).write_text(text)
    assert run("--seeds", "0") == 0 and ran == [0, 0] and seed_file(tmp_path, 0).read_text() == whole


def test_a_failed_seed_leaves_the_others_and_no_result(run, ran, tmp_path) -> None:
    assert run("--seeds", "0", "13", "2") == 1
    assert seed_file(tmp_path, 0).is_file() and seed_file(tmp_path, 2).is_file() and not seed_file(tmp_path, 13).exists()
    assert not (tmp_path / "out" / "figures" / "results" / "study_tiny.json").exists()


# with kernels


def test_two_at_once_give_the_same_as_one_after_the_other(run, path, tmp_path) -> None:
    found = []
    for jobs in ("1", "2"):
        assert run("--seeds", "0", "1", "--jobs", jobs) == 0
        found.append({file.name: file.read_bytes() for file in (tmp_path / "out" / "figures").rglob("*.json")})
        for file in (tmp_path / "out" / "figures").rglob("seed_*.json"):
            file.unlink()
    assert found[0] == found[1] and len(found[0]) == 3
    assert sorted((path.parent / "ran.txt").read_text().split()) == ["0", "0", "1", "1"]
    assert {file.name for file in (tmp_path / "out").glob("*.ipynb")} == {"10_tiny_seed_0.ipynb", "10_tiny_seed_1.ipynb"}


def test_a_killed_run_leaves_nothing_half_written_and_goes_on(run, path, tmp_path) -> None:
    (path.parent / "slow").touch()  # seed 9 takes long
    command = [sys.executable, "-m", "flownlib", "run", str(path), "--profile", "smoke", "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--seeds", "0", "9"], env=environment, stdout=subprocess.DEVNULL)
    ran, deadline = path.parent / "ran.txt", time.monotonic() + 120
    while not (ran.exists() and "9" in ran.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [file.name for file in (tmp_path / "out" / "figures" / "results").rglob("*.*")] == ["seed_0.json"]
    (path.parent / "slow").unlink()
    assert run("--seeds", "0", "9") == 0 and ran.read_text().split() == ["0", "9", "9"]
    assert aggregated(tmp_path)["records"][0]["seeds"] == [0, 9]
    assert not list((tmp_path / "out").rglob(".partial*"))


# what is refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds", "two"], "--seeds takes a whole number from 0 to 1,000,000,000, not 'two'"),
        (["--seeds", "0", "-1"], "--seeds takes a whole number from 0"),
        (["--seeds", "1.5"], "--seeds takes a whole number from 0"),
        (["--seeds", "0", "1", "0"], "--seeds takes every seed once, not 0 1 0"),
        (["--seeds", "1", "-p", "seed=2"], "not by -p seed as well"),
        (["--seeds", "1", "--jobs", "0"], "--jobs takes a whole number from 1 to 1,024, not 0"),
        (["--seeds", "1", "-p", "epochs=0"], "'epochs' takes"),
        (["01", "--seeds", "1"], "are for studies"),
        (["01", "--jobs", "2"], "are for studies"),
        (["studies/99_nothing"], "no notebook 'studies/99_nothing'"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(path, ran, tmp_path, capsys, more, words) -> None:
    assert cli.main(["run", str(path), *more, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert ran == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([raw()], "no finite interval"),
        ([raw(float("nan"))], "no finite interval"),
        ([raw(0.1) | {"quantity": "luck"}], "unknown quantity"),
        ([raw(0.1), raw(0.2)], "same setting"),
    ],
)
def test_records_outside_the_schema_are_not_written(tmp_path, monkeypatch, records, words) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match=words):
        results.write_seed("tiny", 0, Reads(profiles.PROFILES["smoke"], {}), records)
    assert not list(tmp_path.iterdir())


# the notebooks


@pytest.mark.parametrize("study", PATHS, ids=lambda path: path.stem)
def test_a_study_is_a_short_notebook_that_writes_under_its_name(study) -> None:
    notebook = nbformat.read(study, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert all(cell.execution_count is None and not cell.outputs for cell in code), "studies are committed without outputs"
    assert set(notebooks.parameters_of(study)) == {"profile", "seed", "overrides"} and code[0].metadata.tags == ["parameters"]
    assert all("#" in line for line in code[0].source.splitlines())
    assert code[1].source.endswith("settings = start.begin(globals())")
    assert code[-1].source == f'results.write_seed("{studies.name_of(study)}", seed, settings, records)'
    assert f"python -m flownlib run studies/{study.stem} --seeds 0 1 2" in notebook.cells[0].source
    assert len(code) <= 8 and max(len(cell.source.splitlines()) for cell in code) <= 20


def test_every_study_has_committed_results() -> None:
    committed = {path.stem.removeprefix("study_") for path in (ROOT / "figures" / "results").glob("study_*.json")}
    assert {studies.name_of(path) for path in PATHS} == committed


def address(record: dict) -> tuple[str, str, str]:
    return record["quantity"], record["method"], json.dumps(record["setting"], sort_keys=True)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_the_numbers_of_a_study_are_those_of_before(golden, tmp_path, monkeypatch) -> None:
    """In the smoke profile, against values from another machine: a network more or less may tell one image differently."""
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    (study,) = [path for path in PATHS if studies.name_of(path) == golden.stem]
    namespace = {"profile": "smoke", "seed": 0, "overrides": {}}
    for cell in nbformat.read(study, 4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, study.name, "exec"), namespace)
    now = {address(record): fmean(record["values"]) for record in namespace["records"]}
    for record in json.loads(golden.read_text()):
        assert now[address(record)] == pytest.approx(record["mean"], rel=1e-3, abs=0.01), address(record)
