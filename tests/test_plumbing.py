"""The command line, the results files, the lists of requirements: what is refused, and what is said."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml

from flownlib.harness import cli as command_line
from flownlib.harness import doctor, notebooks, report, results, runs
from flownlib.statistics import Interval, mean_interval

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = 'profile: str = "tutorial"  # comment\nseed: int = 0\nrate: float = 0.5\noverrides: dict = {}'


def notebook(path: Path, *cells: str, parameters: str = PARAMETERS, tags: tuple[str, ...] = ("parameters",)) -> Path:
    """A tiny notebook: a parameters cell, then the given code cells."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})
    made = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(made, path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error with which a command refuses (exit status 2)."""
    assert command_line.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, "one sentence, and nothing has run"
    return said.err


def texts(path: Path) -> str:
    """Everything that an executed notebook printed."""
    return "".join(output.get("text", "") for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", []))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWN_PROFILE", raising=False)
    monkeypatch.delenv("FLOWN_RESULTS", raising=False)


# what is refused before anything runs


def test_unknown_notebook_is_refused(capsys) -> None:
    assert "no notebook '99'" in refused(capsys, "run", "99")
    assert "no notebook 'nowhere/00_start_here.ipynb'" in refused(capsys, "run", "nowhere/00_start_here.ipynb")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "huge"], "--profile takes one of smoke, tutorial, paper, not 'huge'"),
        (["-p", "sead=1"], "no parameter 'sead'; it takes profile, seed"),
        (["-p", "seed=one"], "'seed' takes a whole number from 0 to 1,000,000,000, not 'one'"),
        (["-p", "seed=1.5"], "'seed' takes a whole number from 0 to 1,000,000,000, not 1.5"),
        (["-p", "epochs=many"], "'epochs' takes a whole number from 1 to 100,000, not 'many'"),
        (["-p", 'overrides={"epoch": 1}'], "no setting 'epoch'"),
        (["-p", "encoder=wavelet"], "'encoder' takes one of vae, pca, weights, not 'wavelet'"),
        (["-p", "seed"], "name=value"),
        (["-p", "profile=smoke"], "--profile"),
        (["--in-place", "-p", "seed=1"], "--in-place"),
        (["--in-place", "--profile", "smoke"], "--in-place"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(tmp_path, capsys, arguments, words) -> None:
    path = notebook(tmp_path / "10_fine.ipynb", "1")
    assert words in refused(capsys, "run", str(path), "--output", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parameters", "tags"),
    [
        ("seed: int = 0", ()),
        ("seed = 0", ("parameters",)),
        ("seed: int = 1 + int(2)", ("parameters",)),
        ("import os", ("parameters",)),
    ],
)
def test_a_parameters_cell_holds_annotated_literals_only(tmp_path, capsys, parameters, tags) -> None:
    path = notebook(tmp_path / "10_odd.ipynb", parameters=parameters, tags=tags)
    assert "10_odd.ipynb" in refused(capsys, "run", str(path))


def test_a_file_that_is_no_notebook_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "10_text.ipynb").write_text("not JSON")
    assert "not a notebook" in refused(capsys, "run", str(tmp_path / "10_text.ipynb"))


def test_values_are_converted_to_the_annotated_type(tmp_path) -> None:
    path = notebook(tmp_path / "10_fine.ipynb")
    job = notebooks.prepare(path, "smoke", {"seed": "3", "rate": "1", "epochs": "3", "learning_rate": "1"})
    overrides = {"epochs": 3, "learning_rate": 1.0}
    assert job.parameters == {"profile": "smoke", "seed": 3, "rate": 1.0, "overrides": overrides}
    assert isinstance(job.parameters["rate"], float)
    assert notebooks.prepare(path, "tutorial", {}).parameters == {}, "defaults are not injected"


# what happens when notebooks run


def test_all_notebooks_are_attempted_and_the_run_is_red_once(tmp_path, capsys) -> None:
    paths = [
        notebook(tmp_path / "10_bad.ipynb", "x = 1", "raise KeyError('the reason')"),
        notebook(tmp_path / "11_slow.ipynb", "import time; time.sleep(60)"),
        notebook(
            tmp_path / "12_good.ipynb", "print(profile, seed, overrides)", "import os; print(os.environ['FLOWN_RESULTS'])"
        ),
    ]
    out = tmp_path / "out"
    arguments = ["--profile", "smoke", "-p", "seed=7", "-p", "epochs=3", "--timeout", "5", "--output", str(out)]
    assert command_line.main(["run", *map(str, paths), *arguments]) == 1
    said = capsys.readouterr()
    assert "10_bad failed in code cell 3 (`raise KeyError('the reason')`): KeyError: 'the reason'" in said.err
    assert "11_slow failed in code cell 2 (`import time; time.sleep(60)`): it ran longer than 5 s" in said.err
    assert re.search(r"python -m flownlib run \S*11_slow\.ipynb --timeout 10 ", said.err), "what to do about it"
    assert "✓ 12_good" in said.out and re.search(r"^in all +\d+\.\d +\d+\.\d GiB", said.out, re.MULTILINE)
    assert texts(out / "12_good.ipynb") == f"smoke 7 {{'epochs': 3}}\n{out / 'figures'}\n"
    assert all(cell.execution_count is None for cell in nbformat.read(paths[2], 4).cells), "the source stays as it was"


def test_a_run_never_writes_over_a_notebook_or_what_is_not_its_own(tmp_path, monkeypatch, capsys) -> None:
    path = notebook(tmp_path / "10_fine.ipynb", "print('ran')")
    other = notebook(tmp_path / "other" / "10_FINE.ipynb")
    for name in ("empty", "linked", "hard", "mine", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "linked" / path.name).symlink_to(path)
    (tmp_path / "hard" / path.name).hardlink_to(path)
    (tmp_path / "mine" / path.name).write_text("my own notes")
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    before = {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()}
    for output, words in (
        (".", "would overwrite the notebook"),
        ("", "would overwrite the notebook"),
        ("here", "would overwrite the notebook"),
        ("linked", "would overwrite the notebook"),
        ("hard", "would overwrite the notebook"),
        ("mine", "is not an executed copy and stays as it is"),
        ("full", "holds what was not written here (thesis.txt)"),
        ("full/thesis.txt", "is a file"),
    ):
        assert words in refused(capsys, "run", path.name, "--profile", "smoke", "--output", output)
    assert "two of the notebooks are called" in refused(capsys, "run", path.name, str(other), "--output", "new")
    assert {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()} == before
    for _ in range(2):  # its own copy may be replaced, and nothing is left beside it
        assert command_line.main(["run", path.name, "--profile", "smoke", "--output", "empty"]) == 0
        assert texts(tmp_path / "empty" / path.name) == "ran\n"
        assert {found.name for found in (tmp_path / "empty").iterdir()} == {path.name, ".flownlib"}
    capsys.readouterr()
    assert "would overwrite" in refused(capsys, "run", f"empty/{path.name}", "--output", "empty")


def test_write_back_keeps_the_source_and_drops_what_a_run_leaves_behind(tmp_path) -> None:
    path = notebook(tmp_path / "10_fine.ipynb", "import ipywidgets; ipywidgets.IntSlider()", "print('seen')")
    assert command_line.main(["run", str(path), "--in-place", "--output", str(tmp_path / "out")]) == 0
    made = nbformat.read(path, 4)
    assert [cell.execution_count for cell in made.cells] == [1, 2, 3]
    assert made.cells[1].outputs == [] and texts(path) == "seen\n"
    assert set(made.metadata) == {"kernelspec", "flownlib"} and "papermill" not in str(made)
    assert made.metadata.flownlib.source_sha256 == notebooks.source_hash(made)
    made.cells[1].source += "\n2"
    assert made.metadata.flownlib.source_sha256 != notebooks.source_hash(made)


def test_outputs_that_name_this_machine_are_not_committed(tmp_path) -> None:
    path = notebook(tmp_path / "10_path.ipynb", f"print({str(ROOT / 'x')!r})")
    before = path.read_text()
    assert command_line.main(["run", str(path), "--in-place", "--output", str(tmp_path / "out")]) == 1
    assert path.read_text() == before


def test_environment_variables_are_put_back(monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_PROFILE", "paper")
    with runs.environment(FLOWN_PROFILE="smoke", FLOWN_RESULTS="x"):
        assert runs.os.environ["FLOWN_PROFILE"] == "smoke"
    assert runs.os.environ["FLOWN_PROFILE"] == "paper" and "FLOWN_RESULTS" not in runs.os.environ


def test_the_sockets_of_a_killed_run_are_gone_after_the_next(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".partial-flownlib-0123456789abcdef").mkdir()  # its owner was killed, so nobody holds a lock on it
    with runs.private_sockets() as config:
        (folder,) = tmp_path.iterdir()
        assert config.KernelManager.ip == f"{folder}/kernel" and folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_doctor_finds_this_environment_fit_and_a_missing_package(monkeypatch, capsys) -> None:
    assert command_line.main(["doctor"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("ready")
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=999", "no-such-package>=1"])
    assert command_line.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "✗ torch" in said and "✗ no-such-package is missing" in said and "2 things to mend" in said


def test_doctor_looks_at_the_disk_of_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path / "cache"))
    room = {tmp_path / "cache": 0.5 * 2**30}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": room[path]}))
    found = doctor.cache()
    assert not found.ok and f"{tmp_path / 'cache'} can be written; its disk has 0.5 GiB free" in found.text
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path / "file"))
    found = doctor.cache()
    assert not found.ok and str(tmp_path / "file") in found.text and "FLOWN_CACHE" in found.text


def test_the_module_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "flownlib", "run", "99"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr


# results


def good() -> dict:
    return results.record("test_accuracy", "zoo_held_out", {"zoo": "independent"}, Interval(0.9, 0.8, 0.95, 5), [0, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": "niceness"},
        {"method": "Flow!"},
        {"setting": {"task": [1]}},
        {"value": math.nan},
        {"value": 0.99},
        {"low": None, "high": None},
        {"high": math.inf},
        {"n": 0},
        {"n": 2.0},
        {"seeds": []},
        {"remark": "more"},
    ],
)
def test_a_record_outside_the_schema_is_refused(tmp_path, monkeypatch, change) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match="record"):
        results.write("10_test", "tutorial", [good() | change])
    assert not list(tmp_path.rglob("*.json"))


def test_one_unit_has_no_interval_to_report() -> None:
    with pytest.raises(ValueError, match="at least two"):
        results.record("test_accuracy", "soup", {}, mean_interval([0.5]), [0])


def test_two_answers_to_one_question_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match="same setting"):
        results.write("10_test", "tutorial", [good(), good()])


def test_results_are_written_whole_and_read_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    path = results.write("study_test", "tutorial", [good()], settings={"epochs": 1}, code_version="abc")
    assert path == tmp_path / "results" / "study_test.json" and [path] == list(path.parent.iterdir())
    found = results.read("study_test", path.parent)
    assert found["records"] == [good()] and found["notebook"] == "study_test" and found["code_version"] == "abc"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="not a results file"):
        results.read("study_test", path.parent)
    with pytest.raises(ValueError, match="run the study other"):
        results.read("study_other", path.parent)


def test_only_what_is_meant_to_be_committed_goes_to_figures() -> None:
    assert results.results_folder("smoke") == results.results_folder("smoke", committed=True) == ROOT / "build/smoke-figures"
    assert results.results_folder("tutorial") == ROOT / "build" / "figures"
    assert results.results_folder("tutorial", committed=True) == ROOT / "figures"


def test_only_a_run_in_place_is_told_to_write_to_figures(tmp_path) -> None:
    shown = f"import os; print(os.path.relpath(os.environ['FLOWN_RESULTS'], {str(ROOT.parent)!r}))"
    path = notebook(tmp_path / "10_where.ipynb", shown)
    assert command_line.main(["run", str(path), "--in-place", "--output", str(tmp_path / "out")]) == 0
    assert texts(path) == f"{ROOT.name}/figures\n"


def test_a_figure_is_the_same_bytes_twice(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    figures = [plt.subplots(figsize=(1, 1)) for _ in range(2)]  # drawn anew: a layout may be fitted again at every drawing
    for _, axes in figures:
        axes.plot([0, 1])
    first, second = (
        results.save_figure(figure, f"10_test_{i}.png", "tutorial").read_bytes() for i, (figure, _) in enumerate(figures)
    )
    figure = figures[0][0]
    plt.close("all")
    assert first == second and b"Software" not in first
    with pytest.raises(ValueError, match=r"\.png"):
        results.save_figure(figure, "../evil.svg", "tutorial")


def test_committed_results_fit_the_schema() -> None:
    found = {path.stem: results.read(path.stem) for path in sorted((ROOT / "figures" / "results").glob("*.json"))}
    assert all(content["notebook"] == name and content["profile"] != "smoke" for name, content in found.items())


# the pages with results


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with markers in its README and a study's results."""
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path / "figures"))
    results.write("study_zoo", "tutorial", [good() | {"method": "trained", "setting": {"task": "greek_capital"}}])
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path


def test_report_writes_what_the_check_then_accepts(project, capsys) -> None:
    assert command_line.main(["report", "--check"]) == 1
    assert "than README.md and figures/results/README.md: run" in capsys.readouterr().err
    assert command_line.main(["report"]) == 0 and command_line.main(["report", "--check"]) == 0
    tables = (project / "figures" / "results" / "README.md").read_text()
    assert "| greek capital | 0.900 [0.800, 0.950] | 5 |" in tables
    assert (project / "README.md").read_text() == f"before\n{report.BEGIN}\n\n{report.END}\nafter\n"
    results.write("study_zoo", "tutorial", [good() | {"method": "trained", "setting": {"task": "latin"}}])
    assert command_line.main(["report", "--check"]) == 1
    assert "than figures/results/README.md: run" in capsys.readouterr().err


def test_a_table_made_by_earlier_code_says_so(project, monkeypatch) -> None:
    assert f"profile tutorial, {report.STALE})" in report.render(), "no hash at all is not today's"
    monkeypatch.setattr(report, "code_of", {"study_zoo": "abc"}.get)
    records = [good() | {"method": "trained", "setting": {"task": "latin"}}]
    for code, stale in (("abc", False), ("abd", True)):
        results.write("study_zoo", "tutorial", records, code_version=code)
        assert (f"{report.STALE})" in report.render()) == stale
    monkeypatch.setattr(report, "code_of", lambda source: None)
    assert f"{report.STALE})" not in report.render(), "a benchmark's"


def test_report_refuses_a_readme_without_markers_and_smoke_results(project, capsys) -> None:
    (project / "README.md").write_text("nothing here")
    assert "claims:begin" in refused(capsys, "report")
    results.write("study_zoo", "smoke", [good()])
    (project / "README.md").write_text(f"{report.BEGIN}\n{report.END}")
    assert "smoke profile" in refused(capsys, "report")


def test_a_table_refuses_two_records_for_one_cell() -> None:
    table = report.Table("t", "", "study_zoo", "01", ["method"], {"a": {"quantity": "test_accuracy"}})
    with pytest.raises(ValueError, match="two records for held-out networks, 'a'"):
        table.render([good(), good() | {"setting": {"zoo": "shared"}}])
    assert table.render([good()]).splitlines()[2] == "| held-out networks | 0.900 [0.800, 0.950] | 5 |"
    alone = report.Table("t", "", "study_zoo", "01", ["method"], {"a": {"quantity": "test_accuracy"}}, absent=["zoo"])
    assert alone.render([good(), good() | {"setting": {"rank": 4}}]).count("held-out networks") == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ({"interval": "above", "where": {"quantity": "test_accuracy"}}, None),
        ({"interval": "below", "than": 0.96, "where": {"quantity": "test_accuracy"}}, None),
        ({"interval": "around", "than": 0.9, "where": {"quantity": "test_accuracy"}}, None),
        ({"interval": "below", "where": {"quantity": "test_accuracy"}}, "is above 0: write the reading of 'It works.' anew"),
        ({"interval": "above", "where": {"quantity": "spread"}}, "has 0 records for 'accuracy'"),
    ],
)
def test_a_claims_reading_is_refused_when_its_number_says_otherwise(number, words) -> None:
    claim = report.Claim("It works.", "It does.", "study_zoo", [{"what": "accuracy", **number}])
    if words is None:
        assert claim.render([good()]).startswith("**It works.** It does. accuracy **0.900 [0.800, 0.950]** (n = 5; `python")
    else:
        with pytest.raises(ValueError, match=re.escape(words)):
            claim.render([good()])


# intervals of bounded quantities


@pytest.mark.parametrize(
    ("quantity", "interval", "ends"),
    [
        ("two_sample_p_weights", Interval(0.604, -0.447, 1.655, 3), (0, 1)),
        ("test_accuracy", Interval(0.97, 0.93, 1.01, 3), (0.93, 1)),
        ("accuracy_gain", Interval(-0.8, -1.2, -0.4, 3), (-1, -0.4)),
        ("r2", Interval(-0.5, -3.0, 1.2, 3), (-3.0, 1)),
        ("criteria_met", Interval(4.5, 3.9, 5.2, 3), (3.9, 5)),
        ("spread", Interval(0.1, -0.1, 2.3, 3), (0, 2.3)),
        ("test_accuracy", Interval(0.9, 0.8, 0.95, 3), (0.8, 0.95)),
    ],
)
def test_an_interval_ends_at_the_bounds_of_its_quantity(quantity, interval, ends) -> None:
    made = results.record(quantity, "soup", {}, interval, [0])
    assert (made["low"], made["high"]) == ends and made["value"] == interval.value
    assert results.cut(made) == (ends != (interval.low, interval.high)) == report.show(made).endswith("†")


def test_a_value_out_of_bounds_is_refused_and_so_is_an_interval_on_its_way_to_a_file(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"lies from 0 to 1, and so does its interval"):
        results.record("test_accuracy", "soup", {}, Interval(1.2, 1.1, 1.3, 3), [0])
    monkeypatch.setenv("FLOWN_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"lies from 0 to 1, and so does its interval"):
        results.write("10_test", "tutorial", [good() | {"high": 1.01}])
    path = results.write("10_test", "tutorial", [good()])
    path.write_text(path.read_text().replace("0.95", "1.95"))  # as earlier code wrote it
    assert results.read("10_test", path.parent)["records"] == [good() | {"high": 1}]


def test_a_cut_interval_covers_the_mean_as_often_as_the_whole_one() -> None:
    draws = np.random.default_rng(0).beta(0.5, 1.5, size=(500, 3))  # p-values of a weak test; their mean is 0.25
    whole = [mean_interval(three) for three in draws]
    parts = [results.record("two_sample_p_weights", "soup", {}, interval, [0]) for interval in whole]
    covered = [part["low"] <= 0.25 <= part["high"] for part in parts]
    assert covered == [interval.low <= 0.25 <= interval.high for interval in whole] and 0.8 < np.mean(covered) < 1
    assert np.mean([part["high"] - part["low"] for part in parts]) < 0.8 * np.mean([i.high - i.low for i in whole])


# requirements


def test_conda_and_pip_install_the_same_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    listed = [line for line in pip if not line.startswith("-")]
    assert listed == project["dependencies"] + project["optional-dependencies"]["test"]
    assert f"python{project['requires-python']}" in conda and "-c constraints.txt" in pip and "-e ." in pip


def test_constraints_are_exact_cover_the_list_and_name_no_machine() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {re.split(r"[<>=]", line)[0] for line in wanted} <= pinned


def test_committed_json_is_plain() -> None:
    for path in (ROOT / "figures" / "results").glob("*.json"):
        strange: list[str] = []
        json.loads(path.read_text(), parse_constant=strange.append)
        assert not strange, f"{path.name} holds {strange}"
