"""Shared by all tests: one thread, a cache of their own, a zoo small enough to be made anew."""

import os
from pathlib import Path

os.environ.setdefault("FLOWN_CACHE", str(Path(__file__).resolve().parent.parent / "build" / "test-cache"))
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

CORE = [f"flownlib.{path.stem}" for path in (Path(__file__).resolve().parent.parent / "flownlib").glob("[a-z]*.py")]
if "FLOWN_CHECK_SHAPES" in os.environ:  # every call of a public function of the core is held to its annotations
    from jaxtyping import install_import_hook

    install_import_hook(CORE, "shapes.check")

from flownlib.chapters import shared as recipes
from flownlib.harness import profiles

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smoke() -> profiles.Profile:
    """The settings of the smoke profile."""
    return profiles.PROFILES["smoke"]


@pytest.fixture(scope="session")
def tasks(smoke):
    """The smoke profile's tasks by name."""
    return recipes.zoo_tasks(smoke)


@pytest.fixture(scope="session")
def canonical(smoke):
    """The smoke profile's zoo, aligned and split."""
    return recipes.canonical_zoo(smoke, 0, progress=False)
