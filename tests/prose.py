"""Whether the numbers in prose are those of the outputs, results files and code that it stands beside.

    python tests/prose.py 03                                     # the committed notebook
    python tests/prose.py build/03_flow_matching.ipynb --results build/figures/results

A section runs from one heading of level one or two to the next, so a cell that reads a figure and then opens a section
belongs to both. In it, every number with a decimal point, every percentage, every whole number with a thousands comma and
every "n of m" has to be found, rounded to the digits quoted, in what the section's code cells show or say, in the notebook's
own records, in the settings of its profile, or in the results file of a study or benchmark that the section names. A number
with an interval has to be found with that interval. The closing sections may quote what any section shows. A number that is
none of these, such as a level of a test, is declared with a reason in definitions/<notebook>.toml. And what is said to lie
between, above or below has to.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from flownlib.harness import profiles

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DEFINITIONS = ROOT / "figures" / "results", Path(__file__).parent / "definitions"
CLOSING = ("what we saw", "what did not work", "exercises", "where next")
AT_MOST = 12  # definitions in a notebook

SIGNS = "+-−"
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)|\d{1,3}(?:,\d{3})+|\d+"  # .5, 0.5, 1,000, 7
SIGNED = rf"(?<![\w.,])[-+−]?(?:{NUMBER})(?:e[-+]?\d+)?"
INTERVAL = rf"({SIGNED})\s*\[({SIGNED}),\s*({SIGNED})\]"
BOUNDS = rf"\[({SIGNED}),\s*({SIGNED})\]"  # of a value that stands elsewhere in the sentence
COUNT = rf"(?<![\w.,])(\d+|{'|'.join(WORDS[1:])}) (?:out )?of (?:the |these |those )?(\d+|{'|'.join(WORDS)})\b(?!,\d)"
# not prose: code, links, equations, headings, comments; "95 % interval" names a kind of interval
SILENT = re.compile(
    r"```.*?```|``.*?``|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|<!--.*?-->|\$\$.*?\$\$|\$[^$]*\$|https?://\S+"
    r"|^#+ .*?$|95 % (?=interval|t interval|conf)",
    re.S | re.M,
)


@dataclass(frozen=True)
class Quote:
    """A number as it is written, e.g. "−0.5 %"; equal to a value that rounds to it."""

    text: str
    percent: bool = False

    @property
    def value(self) -> float:
        return float(self.text.replace(",", "").replace("−", "-"))

    def fits(self, value: float) -> bool:
        """Whether the value rounds to this number, without its sign if the number is written without one."""
        unit = 10.0 ** -len(self.text.partition(".")[2])
        signed = self.text[0] in SIGNS
        values = (value, 100 * value) if self.percent else (value,)
        return any(abs((v if signed else abs(v)) - self.value) <= unit * 0.5 + 1e-9 for v in values)


@dataclass
class Evidence:
    """What is known where a sentence stands: single numbers, numbers with their intervals, and texts."""

    values: list[float] = field(default_factory=list)
    triples: list[tuple[float, ...]] = field(default_factory=list)
    text: str = ""

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.values + other.values, self.triples + other.triples, f"{self.text}\n{other.text}")

    def holds(self, *quotes: Quote) -> bool:
        """Whether these numbers are known: one alone, the two bounds of an interval, or a value and its bounds.

        A loss of 0.02 [0.01, 0.04] is a difference of -0.02 [-0.04, -0.01].
        """
        if len(quotes) == 1:
            return any(map(quotes[0].fits, self.values))
        signed = any(quote.text[0] in SIGNS for quote in quotes)
        turned = [] if signed else [(value, high, low) for value, low, high in self.triples]
        known = (triple[-len(quotes) :] for triple in [*self.triples, *turned])
        return any(all(quote.fits(value) for quote, value in zip(quotes, values, strict=True)) for values in known)


def numbers(text: str) -> list[float]:
    """All numbers in a text, in order."""
    return [Quote(match).value for match in re.findall(SIGNED, text)]


def from_text(text: str) -> Evidence:
    """The numbers of a text; three in a row may be a value and its interval."""
    found = numbers(text)
    return Evidence(found, list(zip(found, found[1:], found[2:], strict=False)), text)


def from_records(path: Path) -> Evidence:
    """The values of a results file, each with its interval, and the numbers of its settings."""
    content = json.loads(path.read_text())
    rows = [(row["value"], row["low"], row["high"]) for row in content["records"]]
    rest = from_text(json.dumps([[row["setting"], row["n"], row["seeds"]] for row in content["records"]]))
    settings = from_text(json.dumps(list(content.get("settings", {}).values())))
    return Evidence([row[0] for row in rows] + rest.values + settings.values, rows)


def shown(cell: nbformat.NotebookNode) -> str:
    """What a code cell says and shows, without markup."""
    texts = [cell.source]
    for output in cell.outputs:
        data = output.get("data", {})
        page = re.sub(r"<style.*?</style>|<[^>]+>", " ", data.get("text/html", ""), flags=re.S)
        texts.append(output.get("text") or html.unescape(page) or data.get("text/plain", ""))
    return "\n".join(texts)


@dataclass
class Section:
    """A heading, the prose under it, and what its code cells say and show."""

    title: str
    prose: str = ""
    code: str = ""

    def evidence(self, results: Path) -> Evidence:
        """The numbers of its code and outputs and of the studies and benchmarks that it names."""
        both = self.prose + self.code
        named = [f"study_{name}.json" for name in re.findall(r"(?:study_|studies/\d\d_)([a-z]+)", both)]
        named += [f"benchmark_{name}_*.json" for name in re.findall(r"(?:benchmark_|flownlib\.benchmarks )([a-z]+)", both)]
        found = from_text(self.code)
        for name in sorted(set(named)):
            for path in sorted(results.glob(name)) or sorted(RESULTS.glob(name)):
                found += from_records(path)
        return found


def sections(notebook: nbformat.NotebookNode) -> list[Section]:
    """The notebook cut at its headings of level one and two."""
    found = [Section("")]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found[-1].code += shown(cell) + "\n"
        elif cell.cell_type == "markdown":
            before, *rest = re.split(r"^(##? .*)$", cell.source, flags=re.M)
            found[-1].prose += before + "\n\n"
            found += [Section(title.strip("# "), text + "\n\n") for title, text in zip(rest[::2], rest[1::2], strict=True)]
    return found


def quotes(prose: str) -> Iterator[tuple[str, tuple[Quote, ...]]]:
    """Every number to be checked, or a number with its interval, with the words around it."""
    text = SILENT.sub(lambda match: " " * len(match[0]) if "\n" not in match[0] else "\n", prose)
    around = lambda match: " ".join(text[max(0, match.start() - 50) : match.end() + 40].split())
    for pattern in (INTERVAL, BOUNDS):
        for match in re.finditer(pattern, text):
            yield around(match), tuple(map(Quote, match.groups()))
        text = re.sub(pattern, lambda match: " " * len(match[0]), text)
    for match in re.finditer(rf"({SIGNED})(\s?%)?", text):
        if match[2] or "." in match[1] or "," in match[1]:
            yield around(match), (Quote(match[1], bool(match[2])),)


def counts(prose: str) -> list[tuple[str, int, int]]:
    """Every "n of m", in digits or words, with how it is written."""
    whole = lambda word: WORDS.index(word) + 1 if word in WORDS else int(word)
    return [(match[0], whole(match[1]), whole(match[2])) for match in re.finditer(COUNT, SILENT.sub(" ", prose))]


VERB = r"(?:is|are|lies|lie|stays|stay|falls|remains|sits) (?:\w+ )?"
PLAIN = rf"({SIGNED})(?:\s*\[[^\]]*\])?"  # a number, whatever its interval
WAY = r"[^.;:\d]{0,40}?"
MORE = "(?:above|over|more than|higher than|greater than|larger than)"
LESS = "(?:below|under|less than|lower than|smaller than)"
UP, DOWN = "(?:rises?|grows?|climbs?|increases?|improves?)", "(?:drops?|falls?|sinks?|shrinks?|decreases?)"
RELATIONS = {
    rf"{PLAIN}{WAY}\b{VERB}between {WAY}{PLAIN}{WAY} and {WAY}{PLAIN}": lambda a, b, c: min(b, c) <= a <= max(b, c),
    rf"between the other two\D{{0,70}}{PLAIN}[^.\d]*{PLAIN}[^.\d]*?(?:\d+ [^.\d]*?)?{PLAIN}": lambda a, b, c: (
        min(b, c) <= a <= max(b, c)
    ),
    rf"{PLAIN}{WAY}\b{VERB}{MORE} {WAY}{PLAIN}": lambda a, b: a > b,
    rf"{PLAIN}{WAY}\b{VERB}{LESS} {WAY}{PLAIN}": lambda a, b: a < b,
    rf"\b{UP} from {WAY}{PLAIN} to {WAY}{PLAIN}": lambda a, b: a < b,
    rf"\b{DOWN} from {WAY}{PLAIN} to {WAY}{PLAIN}": lambda a, b: a > b,
    INTERVAL: lambda value, low, high: low <= value <= high,
}


def broken_relations(prose: str) -> list[str]:
    """What is said to lie between, above or below, or to rise or fall, and does not; and values outside their intervals."""
    text = " ".join(SILENT.sub(" ", prose).split())
    return [
        match[0]
        for pattern, holds in RELATIONS.items()
        for match in re.finditer(pattern, text)
        if not holds(*(Quote(group).value for group in match.groups()))
    ]


def definitions(name: str) -> dict[str, str]:
    """The declared numbers of a page, as they are written, with the reason of each."""
    path = DEFINITIONS / f"{name}.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def failures(page: list[Section], name: str, own: Evidence, results: Path = RESULTS) -> list[str]:
    """One line for every number or relation of a page that is not borne out, and for a definition that nothing uses."""
    declared, found = definitions(name), []
    everything = sum((section.evidence(results) for section in page), own)
    used: set[str] = set()
    for section in page:
        known = everything if section.title.lower().startswith(CLOSING) else section.evidence(results) + own
        for words, group in quotes(section.prose):
            said = group[0].text + " %" * group[0].percent
            if len(group) == 1 and said in declared:
                used.add(said)
            elif not known.holds(*group):
                found.append(f"[{section.title}] {', '.join(quote.text for quote in group)} is not shown: … {words} …")
        for words, n, m in counts(section.prose):
            if words in declared:
                used.add(words)
            elif not {n, m} <= {*known.values} and not re.search(rf"\b{n} of {m}\b|\b{n}/{m}\b", known.text):
                found.append(f"[{section.title}] {words!r}: no such counts are shown")
        found += [f"[{section.title}] does not hold: {relation}" for relation in broken_relations(section.prose)]
    found += [f"{name}.toml declares {said!r}, which the prose does not say" for said in declared.keys() - used]
    return found + [f"{name}.toml declares more than {AT_MOST} numbers"] * (len(declared) > AT_MOST)


def page_of(path: Path) -> str:
    """The name of a notebook's definitions: that of a solution or a study begins with its folder's."""
    folder = path.resolve().parent.name
    return f"{folder}_{path.stem}" if folder in ("solutions", "studies") else path.stem


def notebook_failures(path: Path, results: Path = RESULTS) -> list[str]:
    """The failures of an executed notebook."""
    notebook, own = nbformat.read(path, 4), Evidence()
    parameters = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    records = results / f"{path.stem}.json"
    if records.exists():
        own += from_records(records)
    own += from_text(json.dumps(list(profiles.load("tutorial").as_dict().values())) + "".join(parameters))
    return failures(sections(notebook), page_of(path), own, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", help="a number, such as 03, or an executed notebook's path")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the run's results files")
    given = parser.parse_args()
    path = Path(given.notebook)
    if not path.is_file():
        (path,) = (ROOT / "notebooks").glob(f"{given.notebook}_*.ipynb")
    found = notebook_failures(path, given.results)
    print("\n".join(found) or "every number in prose is shown beside it")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
