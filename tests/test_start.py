"""What all notebooks have in common: the line they begin with, torch's threads, and where a reader's run writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from flownlib.speed import workers

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("profiles.load", "set_num_threads", "use_style")  # what the one line stands for
WRITES = """
import torch
from flownlib.chapters import start
from flownlib.harness import results
settings = start.begin(globals())
from matplotlib.figure import Figure
from flownlib.statistics import mean_interval
assert torch.get_num_threads() == 1
results.save_figure(Figure(figsize=(1, 1)), "00_start_here_zoo.png", settings.profile)
row = results.record("test_loss_mean", "soup", {}, mean_interval([0.1, 0.2]), [0])
results.write("00_start_here", settings.profile, [row])
assert len(results.read("study_zoo")["records"]) > 1
"""
PROGRAMS = {
    "papermill": ("papermill", "-k", "python3", "reader.ipynb", "executed.ipynb"),
    "a server's kernel": ("nbconvert", "--to", "notebook", "--execute", "reader.ipynb", "--output", "executed.ipynb"),
    "nbval": ("pytest", "--nbval-lax", "--nbval-current-env", "-q", "reader.ipynb"),
}


@pytest.fixture(params=sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def sources(request: pytest.FixtureRequest) -> list[str]:
    """A notebook's code cells."""
    return [cell.source for cell in nbformat.read(request.param, 4).cells if cell.cell_type == "code"]


def test_every_notebook_begins_by_the_one_line(sources) -> None:
    assert "settings = start.begin(globals())" in sources[1].splitlines()
    assert not [source for source in sources for name in SETTINGS if name in source]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1e3", "²", "1025"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, text) -> None:
    monkeypatch.setenv("FLOWN_THREADS", text)
    with pytest.raises(ValueError, match="FLOWN_THREADS"):
        workers.set_threads()


def test_one_thread_unless_the_environment_says_otherwise(monkeypatch) -> None:
    for text, expected in (("2", 2), ("", 1)):
        monkeypatch.setenv("FLOWN_THREADS", text)
        workers.set_threads()
        assert torch.get_num_threads() == expected


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A committed checkout with the library, its figures, and a reader's notebook that writes like the tutorial's."""
    made = tmp_path_factory.mktemp("checkout")
    for name in ("flownlib", "figures"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", made)
    (made / "notebooks").mkdir()
    first = nbformat.v4.new_code_cell(
        'profile: str = "tutorial"\nseed: int = 0\noverrides: dict = {}', metadata={"tags": ["parameters"]}
    )
    reader = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(WRITES)])
    nbformat.write(reader, made / "notebooks" / "reader.ipynb")
    git(made, "init", "-q")
    git(made, "add", "-A")
    git(made, "-c", "user.name=reader", "-c", "user.email=reader@example.org", "commit", "-qm", "all")
    return made


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_readers_run_leaves_what_is_committed_alone(checkout, tmp_path, program) -> None:
    shutil.copy(checkout / "notebooks" / "reader.ipynb", tmp_path)
    shutil.rmtree(checkout / "build", ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWN_")}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *PROGRAMS[program]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(checkout, "status", "--porcelain") == ""
    written = {str(path.relative_to(checkout / "build")) for path in (checkout / "build").rglob("*.*")}
    assert written == {"figures/00_start_here_zoo.png", "figures/results/00_start_here.json"}
