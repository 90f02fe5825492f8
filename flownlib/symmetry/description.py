"""What can be said about an architecture's symmetries: which axes of which tensors share a permutation or a scale.

The vocabulary is that of permutation specifications (Ainsworth et al. 2023, Git Re-Basin), with scales added. A hidden
layer of 8 channels, `conv1`, then ReLU and `conv2`, has one group and one rescaling:

    into = (Axis("conv1.weight", 0), Axis("conv1.bias", 0))
    out = (Axis("conv2.weight", 1),)
    Symmetries((Group(8, into + out),), (Rescaling(into, out),))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor along which units lie, each of them in `repeat` neighbouring places.

    A linear layer behind flattened channels [channel][position] has one place for each position of a channel.
    """

    tensor: str
    dim: int
    repeat: int = 1

    def units(self, tensors: Tensors) -> Tensor:
        """The tensor [m, *shape] as [m, before, units, after]: what belongs to unit i is [:, :, i]."""
        tensor = tensors[self.tensor]
        before, size = tensor.shape[1 : 1 + self.dim], tensor.shape[1 + self.dim]
        return tensor.reshape(len(tensor), math.prod(before), size // self.repeat, -1)


@dataclass(frozen=True)
class Group:
    """Units that can be exchanged: one permutation acts on all of these axes, and on all of them or none."""

    units: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Rescaling:
    """Units that can be rescaled: for any s > 0 of each unit, multiply some axes by s and divide others by it.

    Exact where all that lies between the two is positively homogeneous: relu(s a) = s relu(a), sums, pooling.
    """

    multiplied: tuple[Axis, ...]
    divided: tuple[Axis, ...]


@dataclass(frozen=True)
class Norm:
    """A layer and the batch norm that alone reads it, which divides its scale out again.

    (s a - s mean) / sqrt(s² (variance + epsilon)) = (a - mean) / sqrt(variance + epsilon), so the filters, their bias and
    the running mean (`multiplied`) can be multiplied by s, if the running variance goes to s² (variance + epsilon) - epsilon.
    The norm goes on to mean the same in training mode, which it would not if its mean were moved into its bias.
    """

    multiplied: tuple[Axis, ...]
    variance: Axis
    epsilon: float


@dataclass(frozen=True)
class Symmetries:
    """All that is stated about an architecture, in the order of the forward pass."""

    groups: tuple[Group, ...]
    rescalings: tuple[Rescaling, ...] = ()
    norms: tuple[Norm, ...] = ()

    @property
    def tensors(self) -> set[str]:
        """Names of all tensors that an exchange or a rescaling would change."""
        axes = [axis for group in self.groups for axis in group.axes]
        axes += [axis for rescaling in self.rescalings for axis in rescaling.multiplied + rescaling.divided]
        axes += [axis for norm in self.norms for axis in (*norm.multiplied, norm.variance)]
        return {axis.tensor for axis in axes}
