"""Flow matching on neural-network weights, small enough to read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flownlib.baselines import all_baselines
    from flownlib.evaluation import compare
    from flownlib.generators import FlowGenerator

__all__ = ["FlowGenerator", "all_baselines", "compare"]
_HOMES = {"FlowGenerator": "generators", "all_baselines": "baselines", "compare": "evaluation"}


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported only now, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flownlib' has no attribute {name!r}")
    return getattr(import_module(f"flownlib.{_HOMES[name]}"), name)
