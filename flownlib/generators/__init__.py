"""Everything that samples weights."""

from flownlib.generators.base import Contexts, Generator
from flownlib.generators.flows import FlowGenerator
from flownlib.generators.nulls import Gaussian, Interpolation, Noise, Retrieval, Soup, all_nulls

__all__ = ["Contexts", "FlowGenerator", "Gaussian", "Generator", "Interpolation", "Noise", "Retrieval", "Soup", "all_nulls"]
