"""What was measured, and on what."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flownlib.harness import results
from flownlib.networks import cnn_small
from flownlib.speed import backends
from flownlib.speed.lanes import processor
from flownlib.statistics import Interval


def device_name(device: str) -> str:
    """The processor or GPU in words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{processor('model name').split(':')[-1].strip()}, {torch.backends.cpu.get_cpu_capability()}"


def usable_backends(model: object = None, device: str = "cpu") -> tuple[str, ...]:
    """The backends that work here for a model, the tutorial's by default."""
    fastest = backends.choose("auto", model or cnn_small(), torch.float32, device)
    return ("lanes", "torch") if fastest == "lanes" else ("torch",)


class Measurements(list[dict]):
    """Records for a results file, each printed as it is added; all of one device."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device_name(device)

    def add(self, quantity: str, method: str, interval: Interval, seeds: Sequence[int] = (0,), **setting: str | float) -> None:
        """One more quantity with its interval."""
        print(f"{quantity} of {method}, {setting}: {interval}", flush=True)
        self.append(results.record(quantity, method, setting | {"device": self.device}, interval, list(seeds)))
