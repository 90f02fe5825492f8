"""A CUDA device for machines that have none: numbers stay on the processor, and torch says of each step where its result lies.

Every operation on a tensor that is `elsewhere` runs twice: on fake tensors (`torch._subclasses.fake_tensor`), which say they
are on "cuda:0", hold no numbers and refuse mixed devices as a GPU does; and on the real numbers, so that code can branch on
them, gradients flow, and what comes out can be compared with the processor's. What leaves torch has to come back by `.cpu()`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FAKE = FakeTensorMode()
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}  # fake tensors let these pass
COPIES = {torch.ops.aten.copy_, torch.ops.aten._to_copy}
QUICK: list[bool] = []  # not empty inside `gpu(quick=True)`
BLIND = (DataDependentOutputException, DynamicOutputShapeException)  # what depends on numbers, which fake tensors have not


class Elsewhere(Tensor):
    """A tensor that says it is on a GPU; `numbers` are its values."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, requires_grad: bool = False) -> Elsewhere:
        kinds = {"dtype": numbers.dtype, "layout": numbers.layout, "requires_grad": requires_grad}
        place = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        tensor = Tensor._make_wrapper_subclass(cls, numbers.size(), **place, **kinds)
        tensor.numbers = numbers
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.numbers!r})"

    def __format__(self, spec: str) -> str:
        return format(self.numbers, spec)

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first")

    __array__ = numpy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        device = placed(func, flat, form)
        where = [CPU if isinstance(x, torch.device) else x.numbers if isinstance(x, Elsewhere) else x for x in flat]
        inner, named = tree_unflatten(where, form)
        result = func(*inner, **named)
        # what is written in place stays the very tensor that was given
        same = {id(x.numbers): x for x in flat if isinstance(x, Elsewhere)}
        wrap = lambda x: same.get(id(x), Elsewhere(x)) if isinstance(x, Tensor) and device == CUDA else x
        return tree_map(wrap, result)


def placed(func: Any, flat: list, form: Any) -> torch.device:
    """Where torch puts the result of an operation on these arguments; it raises RuntimeError where it refuses their devices."""
    if torch._C._current_autograd_node() is not None:
        return CUDA  # a backward pass follows its forward pass, but asks the numbers where they are
    if getattr(func, "overloadpacket", None) in INDEXING and not isinstance(flat[0], Elsewhere):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if QUICK:
        return simply_placed(func, flat)
    with FAKE:
        inner, named = tree_unflatten([faked(x) for x in flat], form)
        try:
            result = func(*inner, **named)
        except BLIND:
            return CUDA
    outputs = [x for x in tree_flatten(result)[0] if isinstance(x, FakeTensor)]
    return outputs[0].fake_device if outputs else CPU


def simply_placed(func: Any, flat: list) -> torch.device:
    """The usual rule in a line, for whole notebooks: all on one device, but for single numbers, indices and copies."""
    packet = getattr(func, "overloadpacket", None)
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Elsewhere) and x.dim()]
    there = any(isinstance(x, Elsewhere) for x in flat)
    if there and here and packet not in INDEXING | COPIES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    return CUDA if there else CPU


def faked(x: Any) -> Any:
    """A fake tensor of the same shape, type and device; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    with torch._C._DisableTorchDispatch():
        meta = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
    return FakeTensor(FAKE, meta, CUDA if isinstance(x, Elsewhere) else CPU)


class _Move(torch.autograd.Function):
    """There (True) or back, with the gradient taking the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool) -> Tensor:
        ctx.there = there
        return Elsewhere(x.clone()) if there else x.numbers.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(gradient, not ctx.there), None


def moved(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on "cpu" or "cuda"."""
    return x if isinstance(x, Elsewhere) == (device.type == "cuda") else _Move.apply(x, device.type == "cuda")


FACTORIES = {
    getattr(torch, name)
    for name in ("arange as_tensor empty eye full linspace ones rand randint randn randperm tensor zeros tril_indices").split()
}


class Device(TorchFunctionMode):
    """What asks torch for a tensor on "cuda" gets one that is `Elsewhere`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self.to(name, args, kwargs)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if func in FACTORIES and device and device.type == "cuda":
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            learned = kwargs.pop("requires_grad", False)
            x = func(*args, **kwargs | {"device": CPU})
            return (x if isinstance(x, Elsewhere) else Elsewhere(x)).requires_grad_(learned)
        if func is torch.as_tensor and device and isinstance(args[0], Elsewhere):
            return moved(args[0], CPU)
        return func(*args, **kwargs)

    def to(self, name: str, args: tuple, kwargs: dict) -> Tensor:
        x, rest, device = args[0], [], {"cpu": CPU, "cuda": CUDA}.get(name)
        for value in (*args[1:], kwargs.pop("device", None), kwargs.pop("other", None)):
            if isinstance(value, Tensor):
                device, rest = value.device, [*rest, value.dtype]
            elif isinstance(value, str | torch.device):
                device = torch.device(value)
            elif isinstance(value, torch.dtype):
                rest.append(value)
        x = x if device is None else moved(x, device)
        dtype = kwargs.get("dtype") or (rest or [None])[-1]
        return x if dtype is None else x.to(dtype)


@contextmanager
def gpu(quick: bool = False) -> Iterator[None]:
    """Inside, "cuda" is a device; `quick` asks a simple rule in place of torch where a result lies."""
    QUICK[:] = [True] * quick
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter on the processor cannot become one there
    try:
        with Device():
            yield
    finally:
        QUICK.clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def stopped(notebook: Path) -> list[str]:
    """The cells of a notebook that fail on the pretended device, each with its error and the last line that is ours."""
    found: list[str] = []
    cells = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    namespace: dict[str, Any] = {"__name__": "notebook", "display": lambda *_: None}
    for number, source in enumerate(cells):
        try:
            exec(compile(source, f"<cell {number}>", "exec"), namespace)
        except Exception as error:
            ours = [
                f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<") or "flownlib" in f.filename
            ]
            line = ours[-1].line or source.splitlines()[ours[-1].lineno - 1]
            found.append(f"cell {number}, {Path(ours[-1].filename).name}:{ours[-1].lineno}: {line.strip()}\n    {error}")
    return found


def main(notebook: Path) -> None:
    """Print what `stopped` finds."""
    from flownlib.harness import devices

    devices.is_there = lambda kind: kind != "mps"
    with TemporaryDirectory() as results, gpu(quick=True):
        os.environ.update(FLOWN_PROFILE="smoke", FLOWN_BACKEND="torch", FLOWN_RESULTS=results, MPLBACKEND="Agg")
        found = stopped(notebook)
    print(*found, f"{notebook.stem}: {len(found)} cells stop on a GPU", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
