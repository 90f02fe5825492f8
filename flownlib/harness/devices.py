"""Where tensors are: on the processor, or on a graphics card that is there."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

DEVICES = ("auto", "cpu", "cuda", "mps")


@cache
def is_there(kind: str) -> bool:
    """Whether torch can use a device of DEVICES here."""
    if kind in ("auto", "cpu"):
        return True
    import torch  # here, for importing it takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about a missing driver, which is an answer too
        return (torch.cuda if kind == "cuda" else torch.backends.mps).is_available()


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: naming what there is.
    """
    if not is_there(name):
        raise ValueError(f"setting 'device' names {name}, and torch finds none here; choose one of auto, {automatic()}")


def automatic() -> str:
    """What "auto" stands for here."""
    return next(kind for kind in ("cuda", "mps", "cpu") if is_there(kind))


def device_of(settings: Any) -> str:
    """The device that the settings ask for, as torch names it; what chapters build or load is moved there once."""
    return automatic() if settings.device == "auto" else settings.device
