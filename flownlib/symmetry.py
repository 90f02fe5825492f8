"""The symmetries of weight space, and one canonical representative for each network.

A hidden ReLU unit can be rescaled (its inputs by s, its outputs by 1/s) and exchanged with another unit of its
layer; neither changes the function. `balance` fixes the scales, `Aligner` the order (Ainsworth et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flownlib.classifiers import Classifier, Conv
from flownlib.zoo import Zoo

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Hidden:
    """One layer of hidden units: which tensors carry its units, and how many inputs of the next layer each unit feeds."""

    layer: str
    following: str
    units: int

    def outgoing(self, tensors: Tensors) -> Tensor:
        """The next layer's weights as [m, out, units, fan-out of one unit]."""
        weight = tensors[f"{self.following}.weight"]
        return weight.reshape(*weight.shape[:2], self.units, -1)


def hidden_layers(model: Classifier) -> list[Hidden]:
    """The hidden layers of a classifier, first to last."""
    sizes = [layer.out_channels if isinstance(layer, Conv) else layer.out_features for layer in model.layers]
    names = model.layer_names
    return [Hidden(names[i], names[i + 1], sizes[i]) for i in range(len(names) - 1)]


def balance(model: Classifier, weights: Tensor, rounds: int = 20) -> Tensor:
    """Rescale every hidden unit [m, p] → [m, p] until the norms of its incoming and outgoing weights agree.

    The function of each network is unchanged: relu(s a) / s = relu(a) for s > 0.
    """
    tensors = {name: tensor.clone() for name, tensor in model.layout.views(weights).items()}
    for _ in range(rounds):
        for hidden in hidden_layers(model):
            weight, bias, outgoing = (
                tensors[f"{hidden.layer}.weight"],
                tensors[f"{hidden.layer}.bias"],
                hidden.outgoing(tensors),
            )
            into = (weight.flatten(2).square().sum(-1) + bias.square()).sqrt()
            out = outgoing.square().sum(dim=(1, 3)).sqrt()
            # s = sqrt(|out| / |in|); units that are dead on one side keep a finite scale
            scale = ((out + 1e-4) / (into + 1e-4)).sqrt().clamp(0.1, 10)
            tensors[f"{hidden.layer}.weight"] = weight * scale.view(*scale.shape, *[1] * (weight.dim() - 2))
            tensors[f"{hidden.layer}.bias"] = bias * scale
            tensors[f"{hidden.following}.weight"] = (outgoing / scale[:, None, :, None]).reshape_as(
                tensors[f"{hidden.following}.weight"]
            )
    return model.layout.join(tensors)


def permute(tensors: Tensors, hidden: Hidden, order: Tensor) -> Tensors:
    """Put unit order[i] of each network in place i. order: int64 [m, units]. The function is unchanged."""
    weight, bias, outgoing = tensors[f"{hidden.layer}.weight"], tensors[f"{hidden.layer}.bias"], hidden.outgoing(tensors)
    rows = torch.arange(len(order))[:, None]
    moved = torch.take_along_dim(outgoing, order[:, None, :, None], dim=2)
    return tensors | {
        f"{hidden.layer}.weight": weight[rows, order],
        f"{hidden.layer}.bias": bias[rows, order],
        f"{hidden.following}.weight": moved.reshape_as(tensors[f"{hidden.following}.weight"]),
    }


def _similarity(reference: Tensors, tensors: Tensors, hidden: Hidden) -> Tensor:
    """Inner products between unit i of the reference and unit j of each network: [m, units, units]."""
    weight, bias = f"{hidden.layer}.weight", f"{hidden.layer}.bias"
    incoming = torch.einsum("if,mjf->mij", reference[weight][0].flatten(1), tensors[weight].flatten(2))
    incoming = incoming + torch.einsum("i,mj->mij", reference[bias][0], tensors[bias])
    return incoming + torch.einsum("oif,mojf->mij", hidden.outgoing(reference)[0], hidden.outgoing(tensors))


def match(model: Classifier, weights: Tensor, reference: Tensor, generator: torch.Generator, restarts: int = 3) -> Tensor:
    """Permute each network's hidden units [m, p] to maximise its inner product with the reference [p].

    Coordinate ascent over layers, each step an exact assignment, from the network's own order and from random ones.
    """
    best, best_score = weights, weights @ reference
    target = model.layout.views(reference[None])
    for restart in range(restarts):
        tensors = model.layout.views(weights)
        if restart:
            for hidden in hidden_layers(model):
                order = torch.rand(len(weights), hidden.units, generator=generator).argsort(1)
                tensors = permute(tensors, hidden, order)
        result = _ascend(model, tensors, target)
        score = result @ reference
        better = score > best_score
        best, best_score = torch.where(better[:, None], result, best), torch.where(better, score, best_score)
    return best


def _ascend(model: Classifier, tensors: Tensors, target: Tensors, most: int = 20) -> Tensor:
    for _ in range(most):
        moved = False
        for hidden in hidden_layers(model):
            costs = -_similarity(target, tensors, hidden).double().cpu().numpy()
            order = torch.stack([torch.as_tensor(linear_sum_assignment(cost)[1]) for cost in costs])
            if not torch.equal(order, torch.arange(hidden.units).expand_as(order)):
                tensors, moved = permute(tensors, hidden, order), True
        if not moved:
            break
    return model.layout.join(tensors)


@dataclass(frozen=True)
class Aligner:
    """Balances networks and matches their hidden units to the reference [p] of their task."""

    model: Classifier
    references: dict[str, Tensor]

    @classmethod
    def fit(cls, zoo: Zoo, seed: int = 0, rounds: int = 4, restarts: int = 3) -> Aligner:
        """Match to the running mean of the aligned networks: of all tasks together first, then of each task.

        The joint rounds put the tasks' references in one frame; the tasks' own rounds let their networks agree better.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = balance(zoo.model, zoo.weights)
        joint = weights[0]
        for _ in range(rounds):
            weights = match(zoo.model, weights, joint, generator, restarts)
            joint = weights.mean(0)
        aligned, references = zoo.with_weights(weights), {}
        for task in zoo.tasks:
            own = aligned.task(task).weights
            for _ in range(rounds):
                own = match(zoo.model, own, own.mean(0), generator, restarts)
            references[task] = own.mean(0)
        return cls(zoo.model, references)

    def __call__(self, zoo: Zoo, seed: int = 0, restarts: int = 6) -> Zoo:
        """The same networks, as functions, in canonical form."""
        generator = torch.Generator().manual_seed(seed)
        weights = balance(self.model, zoo.weights)
        for task in zoo.tasks:
            rows = torch.tensor((zoo.table["task"] == task).to_numpy())
            weights[rows] = match(self.model, weights[rows], self.references[task], generator, restarts)
        return zoo.with_weights(weights)
