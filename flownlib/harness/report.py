"""The README's results, rendered from the committed results files and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flownlib.harness.folders import project_root, write_file
from flownlib.harness.results import read

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One table: which study's file, which records make its columns, and what names a row; `live` is the notebook's file.

    A condition maps "quantity", "method" or the name of a setting to the value that it has to have, or to None where
    the setting has to be absent.
    """

    title: str
    source: str
    live: str
    columns: dict[str, dict[str, Any]]
    rows: tuple[str, ...] = ("method",)  # of these, what a record has

    @property
    def maker(self) -> str:
        """The command that makes the committed file."""
        kind, _, name = self.source.partition("_")
        return f"python -m flownlib study {name}" if kind == "study" else f"python -m flownlib.benchmarks {name.split('_')[0]}"

    def render(self, records: list[Record]) -> str:
        """Markdown with one row for each value of `rows`, in the file's order; an empty cell where nothing was measured.

        Raises:
            ValueError: if two records answer for the same cell.
        """
        cells: dict[str, dict[str, Record]] = {}
        for record in records:
            for heading, condition in self.columns.items():
                known = facts(record)
                name = ", ".join(f"`{known[part]}`" for part in self.rows if part in known)
                if not name or not matches(record, condition):
                    continue
                row = cells.setdefault(name, {})
                if heading in row:
                    raise ValueError(f"table {self.title!r}: two records for {name}, {heading!r}; narrow its conditions")
                row[heading] = record
        lines = [[self.rows[0], *self.columns, "n"], ["---", *["---:"] * (len(self.columns) + 1)]]
        lines += [[name, *[show(row.get(heading)) for heading in self.columns], units(row)] for name, row in cells.items()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def facts(record: Record) -> dict[str, Any]:
    """Everything a condition can ask about a record."""
    return {**record["setting"], "quantity": record["quantity"], "method": record["method"]}


def matches(record: Record, condition: Mapping[str, Any]) -> bool:
    """Whether the record has every value of the condition."""
    known = facts(record)
    return all(known.get(name) == value for name, value in condition.items())


def show(record: Record | None) -> str:
    """ "0.912 [0.905, 0.919]", or nothing; large numbers without decimals, and sizes, which do not vary, alone."""
    if record is None:
        return ""
    if record["low"] == record["high"] >= 2:
        return f"{record['value']:,.0f}"
    form = ",.0f" if record["value"] >= 100 else ".3f"
    return f"{record['value']:{form}} [{record['low']:{form}}, {record['high']:{form}}]"


def units(row: Mapping[str, Record]) -> str:
    """How many independent units are behind a row's intervals, such as "3" or "3–12"."""
    counts = sorted({record["n"] for record in row.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _generation() -> dict[str, dict[str, Any]]:
    names = {
        "mean accuracy": "test_accuracy_mean",
        "best by validation": "test_accuracy_best_by_validation",
        "spread": "spread",
        "offset": "offset",
        "nearest training distance": "nearest_training_distance",
        "error overlap": "error_overlap",
        "p, weights": "two_sample_p_weights",
        "p, behaviour": "two_sample_p_behaviour",
        "solver steps": "solver_steps",
        "seconds to fit": "seconds_fit",
        "networks/s": "networks_per_second",
    }
    return {heading: {"quantity": quantity} for heading, quantity in names.items()}


def _own() -> dict[str, dict[str, Any]]:
    columns = _generation()
    gain = {"gain": {"quantity": "accuracy_gain", "networks": 64}}
    return gain | {heading: columns[heading] for heading in list(columns)[:1] + list(columns)[2:8]}


def _encoders() -> dict[str, dict[str, Any]]:
    return {
        "mean accuracy": {"quantity": "test_accuracy_mean", "networks": "held_out"},
        "gain": {"quantity": "accuracy_gain"},
        "R²": {"quantity": "r2"},
        "latents": {"quantity": "latent_dim"},
        "numbers": {"quantity": "numbers"},
        "seconds to fit": {"quantity": "seconds_fit"},
    }


def _low_rank() -> dict[str, dict[str, Any]]:
    return {"mean accuracy": {"quantity": "test_accuracy_mean"}, "gain over full fine-tuning": {"quantity": "accuracy_gain"}}


def _choices() -> dict[str, dict[str, Any]]:
    accuracies = {f"accuracy, {n} step{'s' * (n > 1)}": {"quantity": "test_accuracy_mean", "steps": n} for n in (1, 4, 16)}
    return accuracies | {
        "spread, 4 steps": {"quantity": "spread", "steps": 4},
        "straightness, 16 steps": {"quantity": "straightness", "steps": 16},
    }


def _initialisation(quantity: str) -> dict[str, dict[str, Any]]:
    places = {"held-out alphabets": "held_out_alphabet", "real digits": "far"}
    before_training = {"quantity": quantity, "epoch": 0, "task": None}
    return {heading: {"distance": place, **before_training} for heading, place in places.items()}


def _episodes(shot: int, quantity: str = "test_accuracy") -> dict[str, dict[str, Any]]:
    domains = {"in domain": "in", "held-out alphabets": "ood", "real digits": "far"}
    return {heading: {"quantity": quantity, "domain": domain, "way": 5, "shot": shot} for heading, domain in domains.items()}


TABLES = [
    Table(
        "Training many networks on one core, steps of one network a second",
        "benchmark_zoo_cpu",
        "01_zoo_collection",
        {
            "steps/s": {"quantity": "model_steps_per_second"},
            "× the loop": {"quantity": "speedup"},
            "of the matrix-product rate": {"quantity": "share_of_peak"},
        },
        rows=("method", "minibatches", "networks"),
    ),
    Table(
        "Accuracy of trained networks, by task",
        "study_zoo",
        "01_zoo_collection",
        {"test accuracy": {"quantity": "test_accuracy", "method": "trained"}},
        rows=("task",),
    ),
    Table("Held-out networks, encoded and decoded", "study_encoders", "02_vae_training", _encoders(), rows=("zoo", "method")),
    Table(
        "Linear and low-rank encoders asked for behaviour, a VAE with as many latents as the graph encoder, one graph encoder "
        "for perceptrons of several widths",
        "study_refined",
        "study_refined",
        _encoders(),
        rows=("zoo", "method"),
    ),
    Table(
        "Twelve alphabets as low-rank changes of one base network",
        "study_lora",
        "study_lora",  # no notebook writes such a file
        _low_rank(),
        rows=("method", "rank", "latent_dim"),
    ),
    Table(
        "The last stage of a ResNet-18, adapted to three alphabets",
        "study_resnet",
        "study_resnet",
        _low_rank(),
        rows=("method", "rank", "latent_dim"),
    ),
    Table(
        "Generated networks beside every rival and null, on two kinds of zoo",
        "study_generation",
        "03_flow_matching",
        _generation(),
        rows=("zoo", "method"),
    ),
    Table(
        "Accuracy with diversity: criteria met, of five, and accuracy over the best baseline as novel, trained no further",
        "study_frontier",
        "study_frontier",
        {"criteria met": {"quantity": "criteria_met"}, "margin": {"quantity": "frontier_margin"}},
        rows=("zoo", "method", "share"),
    ),
    Table("What each choice of a latent flow does", "study_choices", "study_choices", _choices()),
    Table(
        "Generating networks against training them, on one core",
        "benchmark_generation_cpu",
        "benchmark_generation_cpu",
        {
            "networks/s": {"quantity": "networks_per_second"},
            "times compiled training": {"quantity": "speedup", "over": "lanes"},
            "times training in PyTorch": {"quantity": "speedup", "over": "torch"},
        },
        rows=("method", "at_once", "backend"),
    ),
    Table(
        "Networks for unseen tasks, before any training step",
        "study_ood",
        "04_ood_finetuning",
        _initialisation("test_accuracy"),
        rows=("method", "classifier"),
    ),
    Table(
        "The same, minus prototypical body + centroid (paired)",
        "study_ood",
        "04_ood_finetuning",
        _initialisation("accuracy_gain"),
    ),
    Table("Five classes, one example of each", "study_fewshot", "05_few_shot_evaluation", _episodes(1)),
    Table("Five classes, five examples of each", "study_fewshot", "05_few_shot_evaluation", _episodes(5)),
    Table(
        "The generated head (`flown_query`) minus each rival (paired), one example of each class",
        "study_fewshot",
        "05_few_shot_evaluation",
        _episodes(1, "accuracy_gain"),
        rows=("over",),
    ),
    Table(
        "Generated tensors of a fine-tuned ResNet-18: two norms on a task it knew, two norms and the head on a new one",
        "study_own",
        "07_your_own_zoo",
        _own(),
        rows=("zoo", "method"),
    ),
]


def render(folder: Path | None = None) -> str:
    """Markdown tables of the committed studies or, with a folder, of the notebooks' live runs in it; absent files are left out.

    Raises:
        ValueError: if a results file is damaged, a committed one was made in the smoke profile, or the folder holds none.
    """
    committed = project_root() / "figures" / "results"
    parts = ["Values with 95 % intervals; n is the number of independent units behind them."]
    for table in TABLES:
        name = table.live if folder else table.source
        if not ((folder or committed) / f"{name}.json").is_file():
            continue
        found = read(name, folder or committed)
        if not folder and found["profile"] == "smoke":
            raise ValueError(f"{name}.json was made in the smoke profile, which proves nothing: make it again")
        maker = f"notebook {name}" if folder else f"`{table.maker}`"
        parts += [f"**{table.title}** ({maker}, profile {found['profile']})", table.render(found["records"])]
    if folder and len(parts) == 1:
        raise ValueError(f"there are no results in {folder}: run the notebooks, or name the folder with their JSON files")
    return "\n\n".join(parts)


def parts_of(text: str) -> tuple[str, str, str]:
    """The README before, between and after the markers.

    Raises:
        ValueError: unless both markers are there once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END} once, in this order")
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, between, after


def readme() -> Path:
    """The README's path."""
    return project_root() / "README.md"


def in_sync() -> bool:
    """Whether the README shows exactly what the results files say."""
    return parts_of(readme().read_text())[1].strip() == render().strip()


def update() -> None:
    """Put the rendered tables between the README's markers."""
    before, _, after = parts_of(readme().read_text())
    write_file(readme(), f"{before}{BEGIN}\n{render()}\n{END}{after}".encode())
