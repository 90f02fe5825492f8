"""Every number quoted in prose is one that stands beside it, and what is said of it holds: see prose.py."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import prose
import pytest
from prose import Evidence, Section, failures, from_text

NOTEBOOKS = sorted((prose.ROOT / "notebooks").glob("**/*.ipynb"))
README = (prose.ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=prose.page_of)
def test_the_numbers_of_a_notebook_stand_beside_what_they_repeat(path: Path) -> None:
    found = prose.notebook_failures(path)
    assert not found, "\n".join(found)


def test_the_readme_quotes_numbers_in_its_claims_only() -> None:
    """Which are rendered from the results files; any other is declared."""
    before, claims, after = re.split(r"<!-- claims:\w+ -->", README)
    assert "0." in claims and failures([Section("", before + after)], "README", Evidence()) == []


def said(sentence: str, output: str = "", heading: str = "Here") -> list[str]:
    """What is wrong with a sentence beside an output."""
    return failures([Section(heading, sentence, output)], "no_such_page", Evidence())


@pytest.mark.parametrize(
    "sentence",
    [
        "0.017 lies between 0.020 and 0.018.",
        "The flow's 0.017 [0.015, 0.019] lies between the Gaussian's 0.020 [0.013, 0.028] and 0.018 of retrieval.",
        "The unseen width lies between the other two: its networks lose 0.017 [0.015, 0.019], those of 16 units 0.020 "
        "[0.013, 0.028], those of 24 units 0.018 [0.015, 0.020] (three seeds).",
        "The mean, 0.017, is well above 0.018.",
        "Its 0.020 stays below the 0.018 of retrieval.",
        "The loss falls from 0.018 to 0.020.",
        "Accuracy grows from 0.020 to 0.018.",
        "0.020 [0.013, 0.018]",
    ],
)
def test_a_relation_that_does_not_hold_is_found(sentence: str) -> None:
    output = "0.017 0.015 0.019  0.020 0.013 0.028  0.018 0.015 0.020  0.020 0.013 0.018  16 24"
    assert said(sentence, output) and all("does not hold" in line for line in said(sentence, output))


@pytest.mark.parametrize(
    "sentence",
    [
        "0.018 lies between 0.020 and 0.017.",
        "The unseen width lies between the other two: it loses 0.018 [0.015, 0.020], the others 0.017 and 0.020.",
        "0.018 is above 0.017, and the loss falls from 0.020 to 0.018.",
        "It was 0.02, or 2 % of `0.3`, in 2 of 3 tasks; see [0.4](x) and $0.5$.",
    ],
)
def test_what_holds_passes(sentence: str) -> None:
    assert said(sentence, "0.018 0.015 0.020   0.017   0.020   2 3") == []


@pytest.mark.parametrize(
    ("sentence", "output"),
    [
        ("accuracy 0.931", "0.932"),
        ("accuracy 0.931 [0.927, 0.935]", "0.931 [0.927, 0.936]"),
        ("between them [0.927, 0.935]", "0.927 0.931 0.935"),
        ("a gain of +0.02", "-0.02"),
        ("accuracy .93", "0.9"),
        ("93 % are right", "0.94"),
        ("12,345 networks a second", "12346"),
        ("4 of 7 tasks gain", "4 of 5"),
        ("three of the seven tasks gain", "4 of 7"),
    ],
)
def test_a_number_that_is_not_shown_is_found(sentence: str, output: str) -> None:
    assert len(said(sentence, output)) == 1


def test_a_loss_is_a_difference_without_its_sign() -> None:
    assert not said("It loses 0.02 [0.01, 0.04].", "-0.02 [-0.04, -0.01]")
    assert said("It loses -0.02 [0.01, 0.04].", "-0.02 [-0.04, -0.01]")


def test_only_the_closing_sections_quote_other_sections() -> None:
    shown = Section("A table", "", "0.931")
    assert failures([shown, Section("Later", "It has 0.931.")], "no_such_page", Evidence())
    assert not failures([shown, Section("What we saw", "It has 0.931.")], "no_such_page", Evidence())


def test_a_cell_is_cut_at_its_heading() -> None:
    code = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text="0.931")])
    cells = [nbformat.v4.new_markdown_cell("## First"), code, nbformat.v4.new_markdown_cell("0.931 it is.\n\n## Next\n\n0.5")]
    first, following = prose.sections(nbformat.v4.new_notebook(cells=cells))[1:]
    assert "0.931" in first.prose and first.evidence(prose.RESULTS).values == [0.931] and following.prose.strip() == "0.5"


def test_a_definition_nobody_uses_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(prose, "DEFINITIONS", tmp_path)
    (tmp_path / "page.toml").write_text('"0.05" = "the usual level of a test"\n"0.9" = "gone from the prose"\n')
    (line,) = failures([Section("", "p below 0.05")], "page", Evidence())
    assert "0.9" in line


def test_most_slips_of_a_digit_would_be_found() -> None:
    """Of all numbers with an interval that the notebooks quote, changed in the value's last digit."""
    slips = []
    for path in NOTEBOOKS:
        for section in prose.sections(nbformat.read(path, 4)):
            known = section.evidence(prose.RESULTS)
            for _, group in prose.quotes(section.prose):
                if len(group) == 3 and known.holds(*group):
                    slips += [not known.holds(prose.Quote(slip), *group[1:]) for slip in _slips(group[0])]
    assert len(slips) > 50 and sum(slips) / len(slips) > 0.9


def _slips(quote: prose.Quote) -> list[str]:
    digits = len(quote.text.partition(".")[2])
    return [f"{quote.value + step * 10.0**-digits:.{digits}f}" for step in (-2, -1, 1, 2)]


def test_every_definition_belongs_to_a_page_and_says_why() -> None:
    pages = set(map(prose.page_of, NOTEBOOKS)) | {"README", "glossary", "questions"}
    for path in prose.DEFINITIONS.glob("*"):
        declared = prose.definitions(path.stem)
        assert path.stem in pages and declared and all(len(why.split()) >= 3 for why in declared.values()), path.name


def test_the_numbers_of_html_and_text_are_read_alike() -> None:
    table = {"text/html": "<style>.a{width:1.5px}</style><td>0.9 [0.8,\n 0.95]</td>", "text/plain": "7.7"}
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("execute_result", data=table)])
    assert prose.numbers(prose.shown(cell)) == [0.9, 0.8, 0.95] and from_text("1e-3").values == [0.001]
