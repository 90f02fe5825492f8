"""The symmetries at work: units exchanged, units rescaled, and the scales that make a network canonical."""

from __future__ import annotations

import torch
from torch import Tensor

from flownlib.classifiers import Classifier
from flownlib.modules import ModuleClassifier
from flownlib.symmetry.derivation import symmetries
from flownlib.symmetry.description import Axis, Group, Norm, Rescaling, Tensors

SMALLEST_VARIANCE = 1e-4  # of a channel that is brought to variance one; a dead one keeps a finite scale


def permute(tensors: Tensors, group: Group, order: Tensor) -> Tensors:
    """Put unit order[i] of each network in place i. order: int64 [m, units]. The function is unchanged."""
    rows = torch.arange(len(order))[:, None]
    for axis in group.axes:
        # [m, units, before, after]: indexing the first two dimensions is several times faster than gathering along the third
        moved = axis.units(tensors).transpose(1, 2)[rows, order].transpose(1, 2)
        tensors = tensors | {axis.tensor: moved.reshape_as(tensors[axis.tensor])}
    return tensors


def rescale(tensors: Tensors, rescaling: Rescaling, scale: Tensor) -> Tensors:
    """Multiply each unit's incoming weights by its scale [m, units] > 0, divide the outgoing. The function is unchanged."""
    return _multiply(_multiply(tensors, rescaling.multiplied, scale), rescaling.divided, 1 / scale)


def standardise(tensors: Tensors, norm: Norm) -> Tensors:
    """Rescale each channel in front of a batch norm so that its variance, epsilon included, is one.

    With v = variance + epsilon, the new variance v / max(v, SMALLEST_VARIANCE) - epsilon is not negative if the old one is not.
    """
    variance = tensors[norm.variance.tensor] + norm.epsilon
    scale = variance.clamp(min=SMALLEST_VARIANCE).rsqrt()
    # variance' + epsilon = s² (variance + epsilon)
    moved = tensors | {norm.variance.tensor: scale.square() * variance - norm.epsilon}
    return _multiply(moved, norm.multiplied, scale)


def balance(model: Classifier | ModuleClassifier, weights: Tensor, rounds: int = 20) -> Tensor:
    """Rescale every hidden unit [m, p] → [m, p] until the norms of its incoming and outgoing weights agree.

    Channels in front of a batch norm are brought to variance one. The function of each network is unchanged.

    Raises:
        ValueError: if the symmetries of the model are not known.
    """
    known, tensors = symmetries(model), model.layout.views(weights)
    for norm in known.norms:
        tensors = standardise(tensors, norm)
    for _ in range(rounds):
        for rescaling in known.rescalings:
            into, out = _norms(tensors, rescaling.multiplied), _norms(tensors, rescaling.divided)
            # s = sqrt(|out| / |in|); units that are dead on one side keep a finite scale
            tensors = rescale(tensors, rescaling, ((out + 1e-4) / (into + 1e-4)).sqrt().clamp(0.1, 10))
    return model.layout.join(tensors)


def _norms(tensors: Tensors, axes: tuple[Axis, ...]) -> Tensor:
    """Euclidean norm of each unit's weights along some axes: [m, units]."""
    return sum(axis.units(tensors).square().sum(dim=(1, 3)) for axis in axes).sqrt()


def _multiply(tensors: Tensors, axes: tuple[Axis, ...], scale: Tensor) -> Tensors:
    for axis in axes:
        scaled = axis.units(tensors) * scale[:, None, :, None]
        tensors = tensors | {axis.tensor: scaled.reshape_as(tensors[axis.tensor])}
    return tensors
