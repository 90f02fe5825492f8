"""The glossary, the questions, the README and every notebook: their links lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import prose
import pytest

from figures import diagrams
from flownlib.harness import notebooks
from flownlib.plots import style

ROOT = prose.ROOT
PAGES = [ROOT / "README.md", *ROOT.glob("notebooks/*.md"), *sorted(ROOT.glob("notebooks/**/*.ipynb"))]
SOLUTIONS = ROOT / "notebooks" / "solutions"


def text_of(path: Path) -> str:
    """A page's markdown."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


def anchors(path: Path) -> set[str]:
    """What links to a page's headings end in: as Jupyter writes them for a notebook, as GitHub does for other pages."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(path), flags=re.S), re.M)
    if path.suffix == ".ipynb":
        return {heading.strip().replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=prose.page_of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.S)):
        if re.match(r"https?:|mailto:|attachment:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", ["glossary", "questions"])
def test_a_page_says_what_the_studies_that_it_names_say(page: str) -> None:
    parts = re.split(r"(?m)^(?=#)", text_of(ROOT / "notebooks" / f"{page}.md"))
    found = prose.failures([prose.Section("", part) for part in parts], page, prose.Evidence())
    assert not found, "\n".join(found)


def test_every_term_is_explained_once_and_every_question_answered_by_a_notebook() -> None:
    terms = re.findall(r"^### (.+)$", text_of(ROOT / "notebooks" / "glossary.md"), re.M)
    assert len(terms) == len(set(terms)) >= 35 and all(term == term.lower() for term in terms)
    answers = re.split(r"^### ", text_of(ROOT / "notebooks" / "questions.md"), flags=re.M)[1:]
    assert len(answers) >= 12 and all(re.search(r"\]\(\d\d_\w+\.ipynb#[^)]+\)", answer) for answer in answers)


@pytest.mark.parametrize("path", notebooks.available(), ids=lambda path: path.stem)
def test_it_has_four_to_six_exercises_and_a_solution_of_each(path: Path) -> None:
    exercises = text_of(path).split("\n## Exercises")[1].split("\n## ")[0]
    asked = list(map(int, re.findall(r"^(\d+)\. ", exercises, re.M)))
    solved = SOLUTIONS / path.name
    assert asked == list(range(1, len(asked) + 1)) and 4 <= len(asked) <= 6
    assert list(map(int, re.findall(r"^##+ (?:Exercise )?(\d+)\b", text_of(solved), re.M))) == asked
    assert f"solutions/{path.name}" in exercises and {"profile", "seed", "overrides"} <= set(notebooks.parameters_of(solved))


def test_the_solutions_are_run_by_make_test_and_by_nothing_else() -> None:
    (nbval,) = re.findall(r"pytest notebooks .*?\n\n", (ROOT / "Makefile").read_text(), re.S)
    assert "--nbval-lax" in nbval and "solutions" not in nbval  # not ignored
    assert {path.name for path in SOLUTIONS.glob("*")} == {path.name for path in notebooks.available()}
    assert not [path for path in [*notebooks.available(), *notebooks.studies()] if "solutions" in path.parts]


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_can_be_drawn_and_is_there(name: str) -> None:
    style.use_style()
    figure = diagrams.DIAGRAMS[name]()
    figure.canvas.draw()
    (ax,) = figure.axes
    inside = ax.get_window_extent()
    for text in (text for text in ax.texts if text.get_text()):
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1, text
    assert (ROOT / "figures" / name).stat().st_size < 60_000


@pytest.mark.parametrize("path", notebooks.available(), ids=lambda path: path.stem)
def test_its_head_says_where_on_the_map_it_is_and_first_uses_lead_to_the_glossary(path: Path) -> None:
    head = nbformat.read(path, 4).cells[0].source
    (alternative,) = re.findall(rf"!\[([^\]]+)\]\(../figures/map_{path.stem[:2]}.png\)", head)
    assert all(place in alternative for place in diagrams.HERE[path.stem[:2]][1])
    linked = re.findall(r"\(glossary\.md#([\w-]+)\)", text_of(path))
    assert "(glossary.md)" in head and len(linked) == len(set(linked)) >= 5
