"""Everything that samples weights."""

from flownlib.generators.base import Contexts, Generator, variant
from flownlib.generators.diffusion import LatentDiffusion
from flownlib.generators.flows import FlowGenerator
from flownlib.generators.nulls import Gaussian, Interpolation, Noise, Retrieval, Soup, all_nulls
from flownlib.generators.regression import HyperNetwork, KernelDensity

__all__ = [
    "Contexts",
    "FlowGenerator",
    "Gaussian",
    "Generator",
    "HyperNetwork",
    "Interpolation",
    "KernelDensity",
    "LatentDiffusion",
    "Noise",
    "Retrieval",
    "Soup",
    "all_nulls",
    "variant",
]
