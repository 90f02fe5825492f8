"""Is this machine ready? Each check answers in plain words; nothing here needs more than Python itself to start."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flownlib.harness.devices import automatic

ROOT = Path(__file__).resolve().parent.parent.parent
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report; only a failed check that is `needed` makes the environment unfit."""

    ok: bool
    text: str
    needed: bool = True

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.text}"


def python() -> Check:
    """Python's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(sys.version_info >= (3, 11), f"Python {version}; 3.11 or newer is needed")


def requirements() -> list[str]:
    """What pyproject.toml asks for, such as "torch>=2.11"; from the installed package where there is no checkout."""
    if (ROOT / "pyproject.toml").is_file():
        return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [line for line in importlib.metadata.requires("flownlib") or [] if "extra ==" not in line]


def packages() -> Iterator[Check]:
    """Every required package, present and new enough; one line when all are."""
    from packaging.requirements import Requirement

    wrong = 0
    for requirement in map(Requirement, requirements()):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong += 1
            yield Check(
                False,
                f"{requirement.name} {version or 'is missing'}; {requirement} is needed: run `make test` or pip install it",
            )
    if not wrong:
        yield Check(True, f"all {len(requirements())} required packages are new enough")


def torch_pair() -> Check:
    """torch and torchvision import, and were built for each other (their compiled operators load)."""
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
        kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a compiled package, this is the place to say so
        reason = str(error).splitlines()[0] if str(error) else ""
        return Check(
            False, f"torch and torchvision do not work together ({type(error).__name__}: {reason}): install both in one command"
        )
    return Check(kept.numel() == 1, f"torch {torch.__version__} and torchvision {torchvision.__version__} fit together")


def kernel() -> Check:
    """The Jupyter kernel that the notebooks name."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return Check(False, "the Jupyter kernel 'python3' is missing: pip install ipykernel")
    return Check(True, "the Jupyter kernel 'python3' is there")


def machine() -> Iterator[Check]:
    """Cores and memory: too little is said, and stops nobody."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available / GIB
    yield Check(cores >= 2, f"{cores} cores; the minutes in the notebooks are those of two", needed=False)
    yield Check(memory >= 6, f"{memory:.0f} GiB of free memory; the notebooks need up to 6", needed=False)


def graphics_card() -> Check:
    """A GPU is used where there is one and is never needed by the smoke and tutorial profiles."""
    import torch

    device = automatic()
    names = {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple's", "cpu": lambda: "none, and none is needed"}
    return Check(True, f"graphics card: {names[device]()}; the setting device=auto means {device} here", needed=False)


def cache() -> Check:
    """The artefact cache can be written, and its disk has room."""
    from flownlib.harness.folders import cache_root, partial_folder
    from flownlib.weights import ArtifactError

    try:
        with partial_folder(cache_root()):
            free = shutil.disk_usage(cache_root()).free / GIB
    except ArtifactError as error:
        return Check(False, f"the cache: {error}")
    return Check(free >= 1, f"the cache {cache_root()} can be written; its disk has {free:.1f} GiB free, and 1 is needed")


def examine() -> Iterator[Check]:
    """All checks in order; those that need a package which is missing are not made."""
    yield python()
    try:
        yield from packages()
    except ImportError as error:
        yield Check(False, f"{error.name} is missing: run `make test`, or pip install -c constraints.txt -e .")
        return
    pair = torch_pair()
    yield pair
    checks: list[Callable[[], Check]] = [kernel, *([graphics_card, cache] if pair.ok else [])]
    for check in checks:
        try:
            yield check()
        except ImportError as error:
            yield Check(False, f"{error.name} is missing: pip install {error.name}")
    yield from machine()


def main() -> int:
    """Print the report; returns 0 if nothing that is needed is missing, else 1."""
    missing = 0
    for check in examine():
        print(check, flush=True)
        missing += check.needed and not check.ok
    print("ready" if not missing else f"{missing} thing{'s' * (missing > 1)} to mend")
    return int(missing > 0)
