"""The compiled backend: one network in each lane of the processor's vectors, all of it inside the core's own cache.

`lanes.cpp` is templates over a list of layers; this module turns a classifier into such a list, compiles it at first use
(a second or two, then cached) and hands tensors over. flownlib/speed/lanes.md says how it works.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.harness.folders import cache_root, disk_trouble, partial_folder
from flownlib.networks import Classifier, Conv
from flownlib.speed.inputs import training_inputs
from flownlib.weights import ArtifactError, check_real

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("lanes.cpp")
# instruction set → (bytes in a vector, registers that a tile of sums may use)
VECTORS = {"AVX512": (64, 24), "AVX2": (32, 12)}
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-Wno-psabi")
REALS = {torch.float32: "float", torch.float64: "double"}


class LanesError(RuntimeError):
    """Why there is no compiled kernel; one sentence for the user."""


@dataclass(frozen=True)
class Kernel:
    """A compiled library for one classifier and dtype."""

    library: ctypes.CDLL
    model: Classifier
    dtype: torch.dtype
    lanes: int

    def train(
        self,
        weights: Tensor,
        images: Tensor,
        labels: Tensor,
        orders: Tensor,
        rate: float | Tensor,
        decay: float | Tensor,
        record: Sequence[int],
    ) -> Tensor:
        """Adam from weights [m, p] with minibatches orders [m or 1, steps, batch]; see `train_many`.

        Returns:
            Checkpoints [len(record), m, p] after the steps in `record`.

        Raises:
            ValueError: as `training_inputs`.
        """
        self._refuse(weights, images, labels, orders)
        given = training_inputs(self.model, weights, images, labels, orders, rate, decay, record)
        labels, orders, rate, decay, record = given
        images, shared, (steps, batch) = self._rows(images), len(orders) < len(weights), orders.shape[1:]

        def block(start: int) -> Tensor:
            here = slice(start, start + self.lanes)
            w = self._pack(_filled(weights[here], self.lanes))
            rates = [_aligned(_filled(x[here], self.lanes)) for x in (rate, decay)]
            own = (orders if shared else _filled(orders[here], self.lanes)).contiguous()
            m, v, kept, done = torch.zeros_like(w), torch.zeros_like(w), [], 0
            for step in record:
                following = own[:, done:]  # a view: its lanes are still `steps` apart
                addresses = [ctypes.c_void_p(x.data_ptr()) for x in (w, m, v, images, labels, following, *rates)]
                sizes = ctypes.c_int64(steps * batch), step - done, batch, int(shared)
                self.library.train(*addresses[:6], *sizes, *addresses[6:], done)
                kept.append(self._unpack(w))
                done = step
            return torch.stack(kept)[:, : len(weights[here])]

        return torch.cat(self._in_threads(block, range(0, len(weights), self.lanes)), dim=1)

    @staticmethod
    def _in_threads(work: Callable[[int], Tensor], starts: range) -> list[Tensor]:
        """Blocks of lanes side by side, on as many threads as torch may use; the compiled code does not hold Python's lock."""
        with ThreadPoolExecutor(min(torch.get_num_threads(), len(starts))) as pool:
            return list(pool.map(work, starts))

    def logits(self, weights: Tensor, images: Tensor) -> Tensor:
        """Logits [m, n, classes] of networks [m, p] on shared images [n, c, h, w]; of what is not finite perhaps NaN.

        Raises:
            ValueError: for weights or images of another type or shape; `logits_of` has refused what is not finite.
        """
        self._refuse(weights, images)
        check_real("weights", weights, (self.model.layout.size,), finite=False)
        check_real("images", images, self.model.image_shape, finite=False)
        rows = self._rows(images)

        def block(start: int) -> Tensor:
            part = weights[start : start + self.lanes]
            w = self._pack(_filled(part, self.lanes))
            out = torch.empty(len(rows), self.model.num_classes, self.lanes, dtype=self.dtype)
            w_, rows_, out_ = (ctypes.c_void_p(x.data_ptr()) for x in (w, rows, out))
            self.library.logits(w_, rows_, len(rows), out_)
            return out.movedim(-1, 0)[: len(part)].contiguous()

        return torch.cat(self._in_threads(block, range(0, len(weights), self.lanes)))

    def _refuse(self, weights: Tensor, *others: Tensor) -> None:
        """What only compiled code minds, for it is given addresses: another precision, or memory of another device."""
        if not isinstance(weights, Tensor) or weights.dtype != self.dtype:
            raise ValueError(
                f"this kernel computes in {self.dtype}, and the weights are {getattr(weights, 'dtype', weights)!r}"
            )
        for tensor in (weights, *others):
            if isinstance(tensor, Tensor) and tensor.device.type != "cpu":
                raise ValueError(f"the compiled backend takes tensors in main memory, not on {tensor.device}")

    def _rows(self, images: Tensor) -> Tensor:
        """Images [n, c, h, w] → one padded row each, channels last for convolutions."""
        images, first = images.to(self.dtype), self.model.layers[0]
        if isinstance(first, Conv):
            images = F.pad(images, [first.padding] * 4).permute(0, 2, 3, 1)
        rows = images.flatten(1)
        return F.pad(rows, (0, self.library.row() - rows.shape[1])).contiguous()

    def _pack(self, weights: Tensor) -> Tensor:
        """Flat weights [lanes, p] → [p, lanes] in the kernel's order."""
        return _aligned(weights[:, kernel_order(self.model)].t())

    def _unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `_pack`, in fresh memory."""
        return packed.t()[:, kernel_order(self.model).argsort()]


def _filled(rows: Tensor, count: int) -> Tensor:
    """Rows repeated from the first until there are `count`."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])]) if len(rows) < count else rows


def _aligned(tensor: Tensor) -> Tensor:
    """A contiguous copy; torch aligns fresh memory to 64 bytes, as vectors need."""
    return tensor.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=32)
def kernel_order(model: Classifier) -> Tensor:
    """int64 [p]: which flat weight stands at each place of the kernel's parameters [inputs][outputs], bias last."""
    places = model.layout.unflatten(torch.arange(model.layout.size))
    parts, channels = [], 0
    for name, layer in zip(model.layer_names, model.layers, strict=True):
        weight, bias = places[f"{name}.weight"], places[f"{name}.bias"]
        if isinstance(layer, Conv):
            weight, channels = weight.permute(2, 3, 1, 0), layer.out_channels
        else:
            # torch flattens [channel][position]; activations here are [position][channel]
            weight = weight.unflatten(1, (channels or 1, -1)).permute(2, 1, 0)
            channels = 0
        parts += [weight.flatten(), bias]
    return torch.cat(parts)


@cache
def source_hash() -> str:
    """Identifies the kernel's arithmetic: a hash of lanes.cpp without its comments and spaces."""
    code = "".join(line.split("//")[0] for line in SOURCE.read_text().splitlines())
    return hashlib.sha256("".join(code.split()).encode()).hexdigest()[:16]


def layer_list(model: Classifier) -> str:
    """The C++ types of the layers.

    Raises:
        LanesError: for a layer that the kernel does not have.
    """
    _, height, width = model.image_shape
    types = []
    for i, layer in enumerate(model.layers):
        if isinstance(layer, Conv):
            if i and layer.padding:
                raise LanesError(f"{model.name} pads inside the network, which the compiled backend does not do")
            height, width = height + 2 * layer.padding, width + 2 * layer.padding
            sizes = (layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.pool, height, width)
            types.append(f"Conv<{','.join(map(str, sizes))}>")
            height, width = (((n - layer.kernel) // layer.stride + 1) // layer.pool for n in (height, width))
        else:
            last = "false" if layer is model.layers[-1] else "true"
            types.append(f"Linear<{layer.in_features},{layer.out_features},{last}>")
    return ",".join(types)


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++, whichever is there."""
    return next((path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None)


@cache
def kernel(model: Classifier, dtype: torch.dtype) -> Kernel:
    """The compiled kernel, from the cache where it has been built before.

    Raises:
        LanesError: if there is no compiler, or it fails, or the classifier or dtype is not supported.
    """
    if not isinstance(model, Classifier):
        raise LanesError(
            f"{model.name} is a torch module of its own, and the compiled backend knows only flownlib's classifiers"
        )
    if dtype not in REALS:
        raise LanesError(f"the compiled backend computes in float32 and float64, not {dtype}")
    size, accumulators = VECTORS.get(torch.backends.cpu.get_cpu_capability(), (16, 12))
    lanes = size // dtype.itemsize
    samples = 1 if any(isinstance(layer, Conv) for layer in model.layers) else 8
    defines = {"REAL": REALS[dtype], "LANES": lanes, "ACCUMULATORS": accumulators, "SAMPLES": samples}
    defines |= {"NET": layer_list(model), "OUTPUTS": model.num_classes}
    path = _build([f"-D{name}={value}" for name, value in defines.items()])
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LanesError(f"the compiled kernel cannot be loaded: {error}") from None
    if library.parameters() != model.layout.size:
        raise LanesError(f"the compiled kernel of {model.name} has another number of parameters")
    return Kernel(library, model, dtype, lanes)


def _build(defines: list[str]) -> Path:
    """Compile lanes.cpp unless the same source, flags, compiler and processor were compiled before.

    A library's name ends in the checksum of its content. What does not match its name is damaged: loading it could end
    the process, so it is not loaded but built again.
    """
    command = compiler()
    if command is None:
        raise LanesError("there is no C++ compiler here (g++ or clang++)")
    version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    identity = [SOURCE.read_text(), *FLAGS, *defines, version, platform.machine(), processor("flags", "Features")]
    root, name = cache_root(), f"lanes-{hashlib.sha256('|'.join(identity).encode()).hexdigest()[:20]}"
    try:
        built = (path for path in sorted(root.glob(f"{name}-*.so")) if path.name == _named(name, path))
        return next(built, None) or _compile([command, *FLAGS, *defines], root, name)
    except (OSError, ArtifactError) as error:
        raise LanesError(f"the compiled kernel cannot be kept in {root}: {getattr(error, 'strerror', None) or error}") from None


def _compile(command: list[str], root: Path, name: str) -> Path:
    """A new library in the cache, all or nothing; another process may build the same at the same time."""
    log.info("compiling the training kernel with %s (a few seconds, once)", command[0])
    with partial_folder(root) as folder, disk_trouble(root):
        built = folder / f"{name}.so"
        result = subprocess.run([*command, "-o", str(built), str(SOURCE)], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip() or "it does not say why").splitlines()[0]
            raise LanesError(f"{command[0]} could not compile {SOURCE.name}: {reason}")
        return built.replace(root / _named(name, built))


def _named(name: str, library: Path) -> str:
    """The file name that goes with a library's content."""
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:20]}.so"


def processor(*fields: str) -> str:
    """What the processor says of itself in one of these fields; `-march=native` depends on its flags."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(fields)), platform.processor())
