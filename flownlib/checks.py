"""What library functions refuse, each in one sentence: numbers that are none, sizes that do not fit, labels out of range."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: one pass over the memory, and no copy of it."""
    return not x.numel() or bool(torch.stack(x.aminmax()).isfinite().all())


def check_count(what: str, count: int) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises:
        ValueError: naming it.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, not {count!r}")


def check_real(what: str, x: Tensor, shape: tuple[int, ...], finite: bool = True) -> None:
    """Refuse anything but floating-point rows [n, *shape], of which there is at least one, and all of them `finite`.

    Raises:
        ValueError: saying what they are instead, and which rows are not finite.
    """
    if not _dense(x) or not x.is_floating_point() or x.shape[1:] != shape or x.dim() == 0 or not x.numel():
        raise ValueError(f"{what} must be floating-point rows of shape {tuple(shape)}, not {_described(x)}")
    if finite and not is_finite(x):
        rows = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{what} {_listed(rows)} of {len(x)} hold numbers that are not finite (NaN or infinite); leave them out"
        )


def check_context(y: Tensor, c: int) -> None:
    """Refuse anything but one finite context [c]: another size would be broadcast, and silently mean something else.

    Raises:
        ValueError: naming both sizes.
    """
    if not _dense(y) or y.shape != (c,):
        raise ValueError(f"the generator was fitted to contexts of shape ({c},) and takes one of them, not {_described(y)}")
    if not is_finite(y):
        raise ValueError("the context holds numbers that are not finite (NaN or infinite)")


def whole_numbers(what: str, values: Tensor, below: int | None = None) -> Tensor:
    """The values as int64, side by side in memory; other types of whole numbers are converted, which is exact.

    Raises:
        ValueError: for floating-point values, none at all, or one that is not in 0, …, below - 1.
    """
    if not _dense(values) or values.is_floating_point() or values.is_complex() or not values.numel():
        raise ValueError(f"{what} must be whole numbers (int64), not {_described(values)}")
    values = values.to(torch.int64).contiguous()
    low, high = (int(x) for x in values.aminmax())
    if low < 0 or (below is not None and high >= below):
        wanted = "be at least 0" if below is None else f"lie between 0 and {below - 1}"
        hint = "; subtract 1 if yours count from 1" if (low, high) == (1, below) else ""
        raise ValueError(f"{what} must {wanted}, got {low} to {high}{hint}")
    return values


def _dense(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta


def _described(x: object) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    kind = "" if _dense(x) else f" ({x.device}, {x.layout})"
    return f"{tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}{kind}"


def _listed(rows: list[int], most: int = 5) -> str:
    return ", ".join(map(str, rows[:most])) + (f" and {len(rows) - most} more" if len(rows) > most else "")
