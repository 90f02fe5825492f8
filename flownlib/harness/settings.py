"""What a setting may be, said once: its type, its range and what it means.

A `Rule` is the metadata of a dataclass's field, or stands for an environment variable or an option of the command line.
The checks, the help texts and the table of all settings come from it.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "names with values",
    list: "a list",
}
SEED = (0, 1_000_000_000)  # seeds that every library's generators take


@dataclass(frozen=True)
class Rule:
    """The values a setting may have: of one type, from `least` to `most` in steps of `multiple`, or one of `choices`."""

    kind: type
    meaning: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    multiple: int = 1
    chapter: str = ""  # the heading above it and what follows it in the table of settings

    @property
    def allowed(self) -> str:
        """The values in words, e.g. "a whole number from 1 to 8"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = KINDS[self.kind] if self.multiple == 1 else f"a multiple of {self.multiple}"
        if self.least is not None and self.most is not None:
            return f"{words} from {self.least:,} to {self.most:,}"
        return words if self.least is None else f"{words} of at least {self.least:,}"

    def check(self, name: str, value: Any) -> Any:
        """The value; a whole number becomes a float where a float is meant.

        Raises:
            ValueError: if the value is of another type (True is no number) or out of range.
        """
        fits = type(value) is self.kind or (self.kind is float and type(value) is int)
        if fits and self.kind in (int, float):
            fits = (self.least is None or self.least <= value) and (self.most is None or value <= self.most)
            fits = (
                fits and (self.kind is not float or math.isfinite(value)) and (self.multiple == 1 or not value % self.multiple)
            )
        if not fits or (self.choices and value not in self.choices):
            raise ValueError(f"{name} takes {self.allowed}, not {shown(value)}")
        return float(value) if self.kind is float else value

    def parse(self, name: str, text: str) -> Any:
        """The value that a text stands for: the text itself where texts are meant, else what it says as JSON.

        Raises:
            ValueError: if it stands for no value, or for one that is out of range.
        """
        if self.kind is str:
            return self.check(name, text)
        try:
            value = read_json(text)
        except ValueError:
            value = {"True": True, "False": False}.get(text, text)
        return self.check(name, value)


def setting(default: Any, meaning: str, least: float | None = None, most: float | None = None, **more: Any) -> Any:
    """A dataclass's field with a rule; `more` are further fields of `Rule`, among them `kind` where there is no default."""
    kind = more.pop("kind", type(default))
    return field(default=default, metadata={"rule": Rule(kind, meaning, least, most, **more)})


def rules(kind: type) -> dict[str, Rule]:
    """The rules of a dataclass's fields by name."""
    return {item.name: item.metadata["rule"] for item in fields(kind) if "rule" in item.metadata}


def check_fields(made: Any) -> None:
    """Check every field that has a rule, in `__post_init__`: no object with a wrong value comes to be.

    Raises:
        ValueError: for the first value that its rule refuses.
    """
    for name, rule in rules(type(made)).items():
        object.__setattr__(made, name, rule.check(f"setting {name!r}", getattr(made, name)))


def table(kind: type) -> str:
    """Name, default, range and meaning of a dataclass's settings, by chapter."""
    defaults = {item.name: "" if item.default is MISSING else str(item.default) for item in fields(kind)}
    return rows((name, rule, defaults[name]) for name, rule in rules(kind).items())


def rows(listed: Iterable[tuple[str, Rule, str]]) -> str:
    """One line for each (name, rule, default), under the headings of their chapters."""
    lines = []
    for name, rule, default in listed:
        lines += [f"\n{rule.chapter}"] * bool(rule.chapter)
        lines.append(f"  {name:<26} {default:<9} {rule.allowed}: {rule.meaning}")
    return "\n".join(lines)


def shown(value: Any, most: int = 80) -> str:
    """A value as it may stand in a sentence: on one line, and short."""
    try:
        text = repr(value) if isinstance(value, str | int | float | bool | None) else reprlib.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number too long to print"
    return text if len(text) <= most else f"{text[:most]}…"


def one_line(error: Exception) -> str:
    """What an error says, as one sentence for a person: an operating system's without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def read_json(text: str) -> Any:
    """The value in a JSON text.

    Raises:
        ValueError: if it is not JSON, nested too deeply to be read, or says one name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name is given twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


ENVIRONMENT = {
    "FLOWN_PROFILE": Rule(str, "takes the place of the profile asked for", choices=("smoke", "tutorial", "paper")),
    "FLOWN_BACKEND": Rule(str, "who trains where nobody says", choices=("auto", "lanes", "torch")),
    "FLOWN_THREADS": Rule(int, "threads of torch in a notebook", 1, 1024),
    "FLOWN_GROUP": Rule(int, "networks that plain PyTorch trains at once", 1, 1_000_000),
    "RANK": Rule(int, "this process's number among those that collect a zoo", 0, 1_000_000),
    "WORLD_SIZE": Rule(int, "how many processes collect a zoo", 1, 1_000_000),
}
FOLDERS = ("FLOWN_CACHE", "FLOWN_RESULTS", "FLOWN_DATA")


def from_environment(name: str, default: Any = None) -> Any:
    """The value of an environment variable; `default` where it is not set, or is empty and called FLOWN_….

    Raises:
        ValueError: if its rule refuses the value.
    """
    text = os.environ.get(name)
    if text is None or (not text and name.startswith("FLOWN_")):
        return default
    return ENVIRONMENT[name].parse(f"the environment variable {name}", text)


def check_environment() -> None:
    """Read every variable of ours once, before anything runs.

    Raises:
        ValueError: for one that its rule refuses, or that names a file where a folder is meant.
    """
    for name in (name for name in ENVIRONMENT if name.startswith("FLOWN_")):
        from_environment(name)
    for name in FOLDERS:
        if os.path.isfile(os.environ.get(name) or os.curdir):
            raise ValueError(f"the environment variable {name} takes a folder, and {shown(os.environ[name])} is a file")
