"""One canonical representative for each network: hidden units exchanged and rescaled without changing the function.

A hidden unit can be exchanged with another of its layer, and after a ReLU it can be rescaled (its inputs by s, its
outputs by 1/s). A model states both as its `symmetries`; `balance` fixes the scales, `Aligner` the order, by matching
every network to a reference (Ainsworth et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flownlib.networks import Model
from flownlib.weights import Axis, Float, Group, Int, Rescaling, Tensors, Vector, Weights
from flownlib.zoo import Zoo


def permute(tensors: Tensors, group: Group, order: Int[Tensor, "m units"]) -> Tensors:
    """The tensors [m, *shape] with unit order[i] of each network in place i; the networks' functions are unchanged."""
    rows = torch.arange(len(order))[:, None]
    for axis in group.axes:
        # [m, units, before, after]: indexing the first two dimensions is several times faster than gathering along the third
        moved = axis.units(tensors).transpose(1, 2)[rows, order].transpose(1, 2)
        tensors = tensors | {axis.tensor: moved.reshape_as(tensors[axis.tensor])}
    return tensors


def rescale(tensors: Tensors, rescaling: Rescaling, scale: Float[Tensor, "m units"]) -> Tensors:
    """The tensors [m, *shape] with each unit's incoming weights times its scale > 0 and the outgoing ones divided by it."""
    return _multiply(_multiply(tensors, rescaling.multiplied, scale), rescaling.divided, 1 / scale)


def balance(model: Model, weights: Weights, rounds: int = 20) -> Weights:
    """Networks [m, p] whose hidden units are rescaled until the norms of their incoming and outgoing weights agree.

    Channels in front of a batch norm are brought to variance one. The function of each network is unchanged.

    Raises:
        ValueError: if the symmetries of the model are not known.
    """
    known, tensors = model.symmetries, model.layout.unflatten(weights)
    for norm in known.norms:
        tensors = norm.standardise(tensors)
    for _ in range(rounds):
        for rescaling in known.rescalings:
            into, out = _norms(tensors, rescaling.multiplied), _norms(tensors, rescaling.divided)
            # s = sqrt(|out| / |in|); units that are dead on one side keep a finite scale
            tensors = rescale(tensors, rescaling, ((out + 1e-4) / (into + 1e-4)).sqrt().clamp(0.1, 10))
    return model.layout.flatten(tensors)


def _norms(tensors: Tensors, axes: tuple[Axis, ...]) -> Tensor:
    """Euclidean norm of each unit's weights along some axes: [m, units]."""
    squares = (axis.units(tensors).square().sum(dim=(1, 3)) for axis in axes)
    return sum(squares, start=torch.zeros(())).sqrt()


def _multiply(tensors: Tensors, axes: tuple[Axis, ...], scale: Tensor) -> Tensors:
    for axis in axes:
        scaled = axis.units(tensors) * scale[:, None, :, None]
        tensors = tensors | {axis.tensor: scaled.reshape_as(tensors[axis.tensor])}
    return tensors


def match(model: Model, weights: Weights, reference: Vector, generator: torch.Generator, restarts: int = 3) -> Weights:
    """Networks [m, p] whose hidden units are permuted to maximise their inner product with the reference [p].

    Coordinate ascent over groups of units, each step an exact assignment, from the network's own order and from random ones
    (Ainsworth et al. 2023, "Git re-basin"). `restarts` >= 1 orders are tried.

    Raises:
        ValueError: if the symmetries of the model are not known.
    """
    best, best_score = weights, weights @ reference
    groups, target = model.symmetries.groups, model.layout.unflatten(reference[None])
    for restart in range(restarts):
        tensors = model.layout.unflatten(weights)
        if restart:
            for group in groups:
                order = torch.rand(len(weights), group.units, generator=generator).argsort(1)
                tensors = permute(tensors, group, order)
        result = model.layout.flatten(_ascend(groups, tensors, target))
        score = result @ reference
        better = score > best_score
        best, best_score = torch.where(better[:, None], result, best), torch.where(better, score, best_score)
    return best


def _ascend(groups: tuple[Group, ...], tensors: Tensors, target: Tensors, most: int = 20) -> Tensors:
    for _ in range(most):
        moved = False
        for group in groups:
            costs = -_similarity(target, tensors, group).double().cpu().numpy()
            order = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in costs]))
            if not torch.equal(order, torch.arange(group.units).expand_as(order)):
                tensors, moved = permute(tensors, group, order), True
        if not moved:
            break
    return tensors


def _similarity(reference: Tensors, tensors: Tensors, group: Group) -> Tensor:
    """Inner products between unit i of the reference and unit j of each network: [m, units, units]."""
    pairs = [(axis.units(reference)[0], axis.units(tensors)) for axis in group.axes]
    return sum((torch.einsum("bia,mbja->mij", fixed, moving) for fixed, moving in pairs), start=torch.zeros(()))


@dataclass(frozen=True)
class Aligner:
    """Balances networks and matches their hidden units to the reference [p] of their task, or to the joint one [p]."""

    model: Model
    references: dict[str, Tensor] = field(default_factory=dict)
    joint: Tensor | None = None

    @classmethod
    def fit(cls, zoo: Zoo, seed: int = 0, rounds: int = 4, restarts: int = 3, reference: str = "task") -> Aligner:
        """References by matching to the running mean of the aligned networks: of all tasks together, then of each task.

        The joint rounds put the tasks' references in one frame; the tasks' own rounds let their networks agree better.

        Args:
            zoo: to be aligned; any order and scale of hidden units.
            seed: of random orders.
            rounds: of matching and averaging, at least 1.
            restarts: as for `match`.
            reference: "task", or "joint" to stop after the joint rounds: one reference, for tasks outside the zoo too.

        Raises:
            ValueError: for another reference, or if the symmetries of the zoo's model are not known.
        """
        if reference not in ("task", "joint"):
            raise ValueError(f'the reference is "task" or "joint", not {reference!r}')
        generator = torch.Generator().manual_seed(seed)
        weights = balance(zoo.model, zoo.weights)
        joint = weights[0]
        for _ in range(rounds):
            weights = match(zoo.model, weights, joint, generator, restarts)
            joint = weights.mean(0)
        if reference == "joint":
            return cls(zoo.model, joint=joint)
        aligned, references = zoo.with_weights(weights), {}
        for task in zoo.tasks:
            own = aligned.task(task).weights
            for _ in range(rounds):
                own = match(zoo.model, own, own.mean(0), generator, restarts)
            references[task] = own.mean(0)
        return cls(zoo.model, references)

    def __call__(self, zoo: Zoo, seed: int = 0, restarts: int = 6) -> Zoo:
        """The same networks, as functions, in canonical form.

        Raises:
            ValueError: if the aligner has no reference for a task.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = balance(self.model, zoo.weights)
        for task in zoo.tasks:
            reference = self.references.get(task, self.joint)
            if reference is None:
                raise ValueError(f'there is no reference for task {task!r}; fit the aligner with reference="joint"')
            rows = torch.tensor((zoo.table["task"] == task).to_numpy(), device=weights.device)
            weights[rows] = match(self.model, weights[rows], reference, generator, restarts)
        return zoo.with_weights(weights)
