"""Raw records of a study, one value for each unit, by quantity, method and setting; and the results of a notebook's run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flownlib.harness import results
from flownlib.statistics import Interval


class Records(list[dict]):
    """Records in the order in which they are added; `common` belongs to the setting of each."""

    def __init__(self, **common: str | float) -> None:
        super().__init__()
        self.common = common

    def add(self, quantity: str, method: str, values: list[float], **setting: str | float) -> None:
        """One more record."""
        setting = self.common | setting
        self.append({"quantity": quantity, "method": method, "setting": setting, "values": values})


def write(name: str, profile: str, seed: int, measured: Mapping[str, Mapping[str, Interval]], **setting: str | float) -> Path:
    """The results file of a notebook's run, from what was measured of each method, by quantity, in one setting."""
    pairs = [(quantity, method, interval) for method, found in measured.items() for quantity, interval in found.items()]
    made = [results.record(quantity, method, setting, interval, [seed]) for quantity, method, interval in pairs]
    return results.write(name, profile, made)
