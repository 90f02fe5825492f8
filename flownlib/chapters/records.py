"""Raw records of a study: one value for each unit, by what was measured, of which method, in which setting."""

from __future__ import annotations


class Records(list[dict]):
    """Records in the order in which they are added; `common` belongs to the setting of each."""

    def __init__(self, **common: str | float) -> None:
        super().__init__()
        self.common = common

    def add(self, quantity: str, method: str, values: list[float], **setting: str | float) -> None:
        """One more record."""
        setting = self.common | setting
        self.append({"quantity": quantity, "method": method, "setting": setting, "values": values})
