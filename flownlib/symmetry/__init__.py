"""The symmetries of weight space, and one canonical representative for each network.

A hidden unit can be exchanged with another of its layer, and after a ReLU it can be rescaled (its inputs by s, its
outputs by 1/s); neither changes the function. `symmetries` states both for a model, `balance` fixes the scales,
`Aligner` the order (Ainsworth et al. 2023).
"""

from flownlib.symmetry import actions, derivation, description, matching
from flownlib.symmetry.actions import balance, permute, rescale, standardise
from flownlib.symmetry.derivation import symmetries
from flownlib.symmetry.description import Axis, Group, Norm, Rescaling, Symmetries
from flownlib.symmetry.matching import Aligner, match

CODE = (description, derivation, actions, matching)  # what a cached result of this package depends on

__all__ = [
    "CODE",
    "Aligner",
    "Axis",
    "Group",
    "Norm",
    "Rescaling",
    "Symmetries",
    "balance",
    "match",
    "permute",
    "rescale",
    "standardise",
    "symmetries",
]
