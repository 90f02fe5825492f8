"""The tables of figures/results/README.md and the README's claims, rendered from the results files and from nothing else.

What is shown stands in tables.toml beside this file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from flownlib.harness import notebooks, studies
from flownlib.harness.folders import project_root, write_file
from flownlib.harness.names import named
from flownlib.harness.results import cut, read

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
STALE, CUT = "made by earlier code", "†"
HEAD = f"""# Results

Rendered from the files in this folder by `python -m flownlib report`; a test fails when they differ. Values are means with
95 % intervals; n is the number of independent units behind them, in most tables the seed. An interval with {CUT} was cut at a
bound of its quantity, such as 0 and 1 for a p-value. Where a table is said to be {STALE}, something that it depends on has
changed since: its numbers are those of that code."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One table: which file, which records make its columns, and which facts name a row.

    Args:
        read: how to read it. live: the file of a notebook's own run. columns: heading → condition, the values of facts.
        absent: facts that a record must not have.
    """

    title: str
    read: str
    source: str
    live: str
    rows: Sequence[str]
    columns: Mapping[str, Mapping[str, Any]]
    absent: Sequence[str] = ()

    def render(self, records: Sequence[Record]) -> str:
        """Markdown with one row for each value of `rows`, in the file's order; an empty cell where nothing was measured.

        Raises:
            ValueError: if two records answer for the same cell.
        """
        known = frame(records)
        cells = [select(known, where, self.absent).assign(column=heading) for heading, where in self.columns.items()]
        tidy = pd.concat(cells).sort_index(kind="stable")
        rows = [fact for fact in self.rows if fact in tidy and tidy[fact].notna().any()]
        tidy["row"] = [" · ".join(shown(fact, row[fact]) for fact in rows if pd.notna(row[fact])) for _, row in tidy.iterrows()]
        tidy = tidy[tidy["row"] != ""]
        twice = tidy[tidy.duplicated(["row", "column"])]
        if len(twice):
            row, column = twice.iloc[0][["row", "column"]]
            raise ValueError(f"table {self.title!r}: two records for {row}, {column!r}; narrow its conditions")
        wide = tidy.pivot(index="row", columns="column", values="cell")
        wide = wide.reindex(index=tidy["row"].unique(), columns=list(self.columns)).astype(object).fillna("")
        wide["n"] = tidy.groupby("row")["n"].agg(units)
        heading = " · ".join(fact.replace("_", " ") for fact in rows)
        lines = [[heading, *wide], ["---", *["---:"] * len(wide.columns)], *([name, *row] for name, *row in wide.itertuples())]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: its facts, its settings among them, and the text of its cell."""
    return pd.DataFrame([{**record["setting"], **record, "cell": show(record)} for record in records], dtype=object)


def select(known: pd.DataFrame, where: Mapping[str, Any], absent: Sequence[str] = ()) -> pd.DataFrame:
    """The rows whose facts have these values and lack what has to be absent."""
    known = known.reindex(columns=list(dict.fromkeys([*known, *where, *absent])))
    fits = pd.Series(True, index=known.index)
    for fact, value in where.items():
        fits &= known[fact] == value
    return known[fits & known[list(absent)].isna().all(axis=1)]


def show(record: Record) -> str:
    """ "0.912 [0.905, 0.919]"; large numbers without decimals, and sizes, which do not vary, alone."""
    if record["low"] == record["high"] >= 2:
        return f"{record['value']:,.0f}"
    form = ",.0f" if record["value"] >= 100 else ".3f"
    return f"{record['value']:{form}} [{record['low']:{form}}, {record['high']:{form}}]{CUT if cut(record) else ''}"


def shown(fact: str, value: Any) -> str:
    """A part of a row's name: a text as it is called, a number with its fact, e.g. "rank 4"."""
    return named(value) if isinstance(value, str) else f"{fact.replace('_', ' ')} {value:,}"


def units(counts: pd.Series) -> str:
    """How many independent units are behind a row's intervals, such as "3" or "3–12"."""
    return f"{counts.min()}–{counts.max()}" if counts.nunique() > 1 else str(counts.iloc[0])


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's, how it came out, and the numbers that say so: see tables.toml."""

    claim: str
    reading: str
    source: str
    number: Sequence[Mapping[str, Any]]
    absent: Sequence[str] = ()

    def render(self, records: Sequence[Record]) -> str:
        """The claim in bold, its reading, each number with its interval, n, and where it comes from.

        Raises:
            ValueError: unless each number is that of one record, whose interval lies where the reading says.
        """
        known, numbers, counts = frame(records), [], []
        for number in self.number:
            found = select(known, number["where"], self.absent)
            if len(found) != 1:
                raise ValueError(f"{self.source}.json has {len(found)} records for {number['what']!r}; one is needed")
            record, than = found.iloc[0], number.get("than", 0)
            lies = "above" if record["low"] > than else "below" if record["high"] < than else "around"
            if lies != number["interval"]:
                raise ValueError(
                    f"{number['what']}: {record['cell']} is {lies} {than}: write the reading of {self.claim!r} anew"
                )
            numbers.append(f"{number['what']} **{record['cell']}**")
            counts.append(record["n"])
        origin = f"n = {units(pd.Series(counts))}; `{maker(self.source)}`"
        return f"**{self.claim}** {self.reading} {'; '.join(numbers)} ({origin})."


@cache
def contents() -> tuple[list[Table], list[Claim]]:
    """All tables and claims, from tables.toml."""
    found = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
    return [Table(**table) for table in found["table"]], [Claim(**claim) for claim in found["claim"]]


def maker(source: str) -> str:
    """The command that makes a committed file."""
    kind, _, name = source.partition("_")
    if kind != "study":
        return f"python -m flownlib.benchmarks {name.split('_')[0]}"
    (stem,) = [path.stem for path in notebooks.studies() if studies.name_of(path) == name]
    return f"python -m flownlib run studies/{stem} --seeds 0 1 2"


def code_of(source: str) -> str | None:
    """The hash of today's code behind a committed file; None where no hash is kept, as for a benchmark."""
    paths = {studies.name_of(path): path for path in notebooks.studies()}
    path = paths.get(source.removeprefix("study_"))
    return studies.code_version(path) if path else None


def committed(source: str) -> dict[str, Any]:
    """A committed results file; refused if it was made in the smoke profile."""
    found = read(source, results_folder())
    if found["profile"] == "smoke":
        raise ValueError(f"{source}.json was made in the smoke profile, which proves nothing: make it again")
    return found


def render(folder: Path | None = None) -> str:
    """Markdown tables of the committed results or, with a folder, of the notebooks' live runs in it; absent files are left out.

    Raises:
        ValueError: if a results file is damaged, a committed one was made in the smoke profile, or the folder holds none.
    """
    parts = []
    for table in contents()[0]:
        name = table.live if folder else table.source
        if not ((folder or results_folder()) / f"{name}.json").is_file():
            continue
        found = read(name, folder) if folder else committed(name)
        origin = [f"notebook {name}" if folder else f"`{maker(name)}`", f"profile {found['profile']}"]
        if not folder and code_of(name) not in (None, found.get("code_version")):
            origin.append(STALE)
        parts += [f"## {table.title}", table.read, f"({', '.join(origin)})", table.render(found["records"])]
    if folder and not parts:
        raise ValueError(f"there are no results in {folder}: run the notebooks, or name the folder with their JSON files")
    return "\n\n".join([HEAD, *parts])


def claims() -> str:
    """The README's list of the paper's claims; those whose results are absent are left out."""
    there = [claim for claim in contents()[1] if (results_folder() / f"{claim.source}.json").is_file()]
    return "\n".join(f"{i}. {claim.render(committed(claim.source)['records'])}" for i, claim in enumerate(there, 1))


def results_folder() -> Path:
    """Where the committed results are."""
    return project_root() / "figures" / "results"


def pages() -> dict[Path, str]:
    """The two pages with what they should say: the README with its claims, and all tables.

    Raises:
        ValueError: unless the README has both markers once, in order.
    """
    readme = project_root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END} once, in this order")
    before, rest = text.split(BEGIN)
    whole = f"{before}{BEGIN}\n{claims()}\n{END}{rest.split(END)[1]}"
    return {readme: whole, results_folder() / "README.md": render() + "\n"}


def outdated() -> list[str]:
    """The pages that do not say what the results files do."""
    found = pages().items()
    return [
        str(page.relative_to(project_root())) for page, text in found if not page.is_file() or page.read_text("utf-8") != text
    ]


def update() -> None:
    """Write both pages."""
    for page, text in pages().items():
        write_file(page, text.encode())
