"""What FLOWN_CHECK_SHAPES=1 holds the core's functions to: the shapes and types of tensors, and nothing else."""

import re

from beartype import beartype

SHAPED = re.compile(r"\b(Float|Int|Bool|Weights|Latents|Vector|Images|Labels)\b")


def check(function):
    """The function, whose calls are checked wherever an annotation states a shape; protocols are left to the type checker."""
    if isinstance(function, type):
        return function
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if SHAPED.search(str(hint))}
    return beartype(function)
