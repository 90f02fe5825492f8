"""The notebooks' widgets, run headlessly again and again: none may stall, and none may bring an Output widget.

When a headless client shows an Output widget it sends the picture back to the kernel, and may then sleep until the cell's
time limit. An Image widget is only ever received.
"""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import nbformat
import pytest

from flownlib.harness import cli as command_line

ROOT = Path(__file__).resolve().parent.parent
CODE = {
    path.stem[:2]: [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
WIDGETS = {number: [cell for cell in cells if ".show()" in cell] for number, cells in CODE.items()}
BRINGS_OUTPUT = {"Output", "interact", "interact_manual", "interactive", "interactive_output"}
STATE = "application/vnd.jupyter.widget-state+json"
REPEATS, LIMIT = 20, 60  # a cell takes about 0.3 s, the first one more where the machine is busy
LARGE_REPEATS = 5

# what each widget's cell needs, as small as it can be
FIRST = """
from types import SimpleNamespace
import torch
from flownlib.chapters import shared
from flownlib.harness import profiles
from flownlib.scoring import Split
from flownlib.speed import workers
workers.set_threads()
seed, settings = 0, profiles.PROFILES["smoke"]
tasks = dict(list(shared.zoo_tasks(settings).items())[:1])
(latin,) = tasks.values()
each = torch.cat([(latin.test.y == label).nonzero()[:4, 0] for label in range(10)])
latin = SimpleNamespace(test=Split(latin.test.x[each], latin.test.y[each]))
tasks = {name: latin for name in tasks}
canonical = shared.canonical_zoo(settings, seed, progress=False)
train, model = canonical.train, canonical.train.model
"""
SETUPS = {
    "00": """
from flownlib.chapters import c00_pictures as pictures
from flownlib.chapters import c00_plane as plane
lands = [pictures.land(chord, 41) for chord in plane.CHORDS]
films = {(s, c): torch.randn(41, 60, 2).cumsum(0) / 8 for s in range(3) for c in range(3)}
""",
    "01": "aligner = lambda zoo, seed: zoo",
    "02": """
from flownlib.extensions.pca import PCA
full, labels = PCA.fit(train, 4), train.table["task"].tolist()
""",
    "03": """
from flownlib import flow, generators
from flownlib.extensions.pca import PCA
from flownlib.plots.explorer import Recorder, trajectory_explorer
from flownlib.generators import FlowGenerator
contexts = {name: torch.randn(4, 8) for name in train.tasks}
training = generators.FlowTraining(steps=2, batch_size=16)
generator = FlowGenerator(PCA.fit(train, 4), width=16, training=training).fit(train, contexts, 0)
asked_for = {name: contexts[name][0] for name in tasks}
priors = {"N(0, 1)": flow.GaussianPrior(4).sample}
record = Recorder(generator, tasks, asked_for, priors, torch.eye(4)[:2], model, networks=2, tested=10)
""",
    "05": """
from flownlib.extensions import fewshot
from flownlib.plots import fewshot as figures_fewshot
from flownlib.extensions.episodes import draw_episodes
draw = lambda *size: draw_episodes(torch.rand(10, 12, *size), 3, 5, 5, 6, torch.Generator().manual_seed(0))
pairs, made = {domain: (draw(1, 14, 14), draw(16)) for domain in ("in", "ood")}, None
logistic = lambda episodes: fewshot.logistic_regression(episodes, 0.1)
c05_few_shot = SimpleNamespace(methods=lambda made, seed: {"centroid": fewshot.centroid, "logistic_regression": logistic})
""",
}
LARGE = """
import numpy, ipywidgets
from flownlib.plots.panel import Panel
from matplotlib.figure import Figure
def noise(number):
    figure = Figure(figsize=(10, 8))
    figure.figimage(numpy.random.rand(640, 800, 3))
    return figure
panel = Panel(noise, {"number": ipywidgets.IntSlider()}, 800, 640)
assert len(panel.image.value) > 1_000_000
panel.show()
"""


def names_in(source: str) -> set[str]:
    """The names that some code uses, not the words of its texts and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_no_notebook_and_no_module_uses_an_output_widget() -> None:
    sources = {f"notebook {number}": "\n".join(cells) for number, cells in CODE.items()}
    sources |= {str(path): path.read_text() for path in (ROOT / "flownlib").rglob("*.py")}
    assert len(sources) > 60
    assert {where: found for where, source in sources.items() if (found := names_in(source) & BRINGS_OUTPUT)} == {}


def test_every_widget_is_known_here() -> None:
    assert {number: len(cells) for number, cells in WIDGETS.items() if cells} == dict.fromkeys(SETUPS, 1)
    assert not [number for number, cells in CODE.items() if "ipywidgets" in names_in("\n".join(cells))], "use flownlib.panel"


@pytest.mark.usefixtures("canonical")  # the zoo is in the cache from here on
def test_no_widget_stalls_a_headless_run(tmp_path) -> None:
    first = nbformat.v4.new_code_cell('profile: str = "smoke"', metadata={"tags": ["parameters"]})
    parts = [[FIRST], *([SETUPS[number], *REPEATS * WIDGETS[number]] for number in SETUPS), LARGE_REPEATS * [LARGE]]
    cells = [nbformat.v4.new_code_cell(source) for part in parts for source in part]
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *cells]), tmp_path / "widgets.ipynb")
    run = ["run", str(tmp_path / "widgets.ipynb"), "--output", str(tmp_path / "out"), "--timeout", str(LIMIT)]
    assert command_line.main([*run, "--profile", "smoke"]) == 0

    done = nbformat.read(tmp_path / "out" / "widgets.ipynb", 4)
    shown = [cell for cell in done.cells if ".show()" in cell.source]
    seconds = [cell.metadata.papermill.duration for cell in shown]
    assert len(seconds) == len(SETUPS) * REPEATS + LARGE_REPEATS >= 100
    assert max(seconds) < LIMIT - 1, "a cell that sleeps until its limit ends without an error"
    assert all("application/vnd.jupyter.widget-view+json" in str(cell.outputs) for cell in shown)
    models = [model["model_name"] for model in done.metadata.widgets[STATE]["state"].values()]
    assert models.count("ImageModel") == len(shown) and "OutputModel" not in models
