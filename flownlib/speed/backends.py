"""Which way many networks are trained and evaluated here: compiled lanes or plain PyTorch, and in groups of what size."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from flownlib import networks, scoring
from flownlib.harness.settings import ENVIRONMENT, from_environment
from flownlib.networks import Classifier, Model
from flownlib.speed import convolutions, lanes

log = logging.getLogger(__name__)
BACKENDS = ENVIRONMENT["FLOWN_BACKEND"].choices
FEW = 4  # networks; below, filling all lanes costs more than it saves


def choose(backend: str, model: Classifier, dtype: torch.dtype, device: str = "cpu", networks: int = FEW) -> str:
    """ "lanes" or "torch". "auto" takes the environment variable FLOWN_BACKEND, else the compiled lanes where they work.

    Raises:
        ValueError: for an unknown backend, or if "lanes" is asked for where they do not work.
    """
    wanted = from_environment("FLOWN_BACKEND", "auto") if backend == "auto" else backend
    if wanted not in BACKENDS:
        raise ValueError(f"there is no backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted == "torch" or (wanted == "auto" and (networks < FEW or not isinstance(model, Classifier))):
        return "torch"
    reason = why_not_lanes(model, dtype, device)
    if reason and wanted == "lanes":
        raise ValueError(f"the compiled backend cannot be used: {reason}")
    return "torch" if reason else "lanes"


@cache
def why_not_lanes(model: Classifier, dtype: torch.dtype, device: str) -> str | None:
    """Why the compiled backend cannot be used, said once in the log; None where it can."""
    if device != "cpu":
        return f"it runs on the processor, and the weights are on {device}"
    try:
        lanes.kernel(model, dtype)
    except lanes.LanesError as error:
        log.warning("training with plain PyTorch, several times slower than compiled: %s", error)
        return str(error)
    return None


@cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for reuse, for a fresh page costs more than the arithmetic on it.

    Returns whether the library knows how (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim, top_pad, mmap_threshold = -1, -2, -3
    return all([mallopt(mmap_threshold, 2**25), mallopt(trim, 2**31 - 1), mallopt(top_pad, 2**26)])


def fast_logits(model: Model, weights: Tensor, x: Tensor, backend: str) -> Tensor | None:
    """Logits [m, n, classes] by the compiled lanes; None where plain PyTorch is wanted or the faster one."""
    if choose(backend, model, weights.dtype, weights.device.type, len(weights)) == "lanes":
        return lanes.kernel(model, weights.dtype).logits(weights, x)
    return None


@torch.no_grad()
def grouped_logits(model: Model, weights: Tensor, x: Tensor, backend: str, chunk: int = 50) -> Tensor:
    """Logits [m, n, classes] by plain PyTorch, in parts whose activations fit the processor's cache."""
    groups = weights.split(group_size(model, chunk, weights))
    return torch.cat([torch.cat([model.forward(part, images) for images in x.split(chunk)], dim=1) for part in groups])


def group_size(model: Model, batch: int, weights: Tensor) -> int:
    """How many networks plain PyTorch should train at once: on a processor as many as keep to its cache, on a GPU all.

    The largest activation of a group may take three times the second-level cache, and the groups are of about one size.
    The environment variable FLOWN_GROUP sets another number.
    """
    if group := int(os.environ.get("FLOWN_GROUP") or 0):
        return group
    if weights.device.type != "cpu":
        return max(1, len(weights))
    largest = batch * model.largest_activation * weights.element_size()
    most = max(1, min(64, 3 * cache_bytes() // largest))
    return -(-len(weights) // -(-len(weights) // most)) if len(weights) else 1


@cache
def cache_bytes() -> int:
    """Second-level cache of one core; 1 MiB where the system does not say."""
    entry = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    text = entry.read_text().strip() if entry.exists() else ""
    return int(text[:-1]) * 1024 if text.endswith("K") else 2**20


scoring.FAST_LOGITS += [fast_logits, grouped_logits]
networks.CONVOLUTIONS.append(convolutions.conv_relu)
