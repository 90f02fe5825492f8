"""The committed notebooks as documents: executed, fresh, small, readable."""

from __future__ import annotations

import statistics
from pathlib import Path

import nbformat
import pytest

from flownlib.harness import notebooks

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, 4)


@pytest.fixture
def code(notebook: nbformat.NotebookNode) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_the_notebooks_of_the_readme_are_all_there() -> None:
    assert [path.stem.split("_")[0] for path in PATHS] == ["00", "01", "02", "03", "04", "05", "06", "07"]
    assert notebooks.available() == PATHS and notebooks.find("studies/03_generation") in notebooks.studies()


def test_it_was_run_from_top_to_bottom_without_an_error(code) -> None:
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


def test_its_outputs_are_those_of_its_code(notebook) -> None:
    assert notebook.metadata["flownlib"]["source_sha256"] == notebooks.source_hash(notebook), "run it again with --in-place"


def test_it_opens_anywhere(path, notebook) -> None:
    assert notebook.metadata["kernelspec"]["name"] == "python3" and "widgets" not in notebook.metadata
    assert path.stat().st_size < 500_000
    nbformat.validate(notebook)


def test_it_has_one_parameters_cell_of_commented_literals(path, code) -> None:
    assert {"profile", "seed", "overrides"} <= set(notebooks.parameters_of(path))
    (cell,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert all("#" in line for line in cell.source.splitlines())


def test_code_cells_are_short_and_prose_is_long(code, prose) -> None:
    lines = [len(cell.source.splitlines()) for cell in code]
    assert statistics.median(lines) <= 8 and max(lines) <= 20
    assert len(prose.split()) >= 900


def test_it_says_what_it_is_for_and_what_did_not_work(prose) -> None:
    for words in (
        "What you will learn",
        "How long",
        "What it needs",
        "What we saw",
        "What did not work",
        "Exercises",
        "Where next",
    ):
        assert words.lower() in prose.lower(), words


def test_it_shows_figures_without_a_live_kernel(code) -> None:
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= 4


def test_some_outputs_are_compared_when_it_is_run_again(code) -> None:
    checked = [cell for cell in code if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked and all(cell.outputs for cell in checked)
