"""A corrector in closed form: every layer of a sampled network is solved again so that its units do what trained units do.

A Gaussian of aligned networks draws good weights one by one and bad networks: each layer meets inputs that it was not trained
for. But in aligned networks unit j of a layer has nearly the same task everywhere. So its pre-activations on a few TRAINING
images are taken from the zoo, averaged over a few parents, and each layer in turn takes the weights nearest to its sampled
ones that give them. Layer-wise targets are the hints of Romero et al. 2015 (FitNets); restoring the statistics of merged
networks' activations is REPAIR (Jordan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.context import Contexts, mean_contexts, nearest_task
from flownlib.encoders import WeightSpace
from flownlib.generators import Generator
from flownlib.networks import Classifier, Conv, Linear
from flownlib.optimisation import seeded
from flownlib.scoring import Task
from flownlib.zoo import Zoo

GROUP = 8  # networks solved together, so that their activations fit the processor's cache


def layer_inputs(layer: Conv | Linear, h: Tensor) -> Tensor:
    """What one unit of a layer sees, with a one for its bias: h [m, n, …] → [m, n * positions, d + 1]."""
    m, n = h.shape[:2]
    if isinstance(layer, Conv):
        patches = F.unfold(h.flatten(0, 1), layer.kernel, padding=layer.padding, stride=layer.stride)
        rows = patches.transpose(1, 2).reshape(m, -1, patches.shape[1])
    else:
        rows = h.flatten(2)
    return F.pad(rows, (0, 1), value=1.0)


def layer_outputs(layer: Conv | Linear, z: Tensor, n: int) -> Tensor:
    """The next layer's h [m, n, …] of pre-activations z [m, n * positions, units] on n images."""
    if not isinstance(layer, Conv):
        return z.relu()
    m, side = len(z), round((z.shape[1] // n) ** 0.5)
    h = z.relu().view(m * n, side, side, layer.out_channels).permute(0, 3, 1, 2)
    return (F.max_pool2d(h, layer.pool) if layer.pool > 1 else h).unflatten(0, (m, n))


def layer_matrices(model: Classifier, weights: Tensor) -> list[Tensor]:
    """Each layer's weights and bias as one matrix [m, units, d + 1]."""
    tensors = model.layout.unflatten(weights)
    return [
        torch.cat([tensors[f"{name}.weight"].flatten(2), tensors[f"{name}.bias"][..., None]], dim=2)
        for name in model.layer_names
    ]


def join_matrices(matrices: list[Tensor]) -> Tensor:
    """The inverse of `layer_matrices`: weights [m, p]."""
    return torch.cat([part for matrix in matrices for part in (matrix[..., :-1].flatten(1), matrix[..., -1])], dim=1)


def pre_activations(model: Classifier, weights: Tensor, x: Tensor) -> list[Tensor]:
    """Every layer's pre-activations [m, n * positions, units] of networks [m, p] on images x [n, c, h, w]."""
    h, activations = x[None], []
    for layer, matrix in zip(model.layers, layer_matrices(model, weights), strict=True):
        activations.append(layer_inputs(layer, h) @ matrix.transpose(1, 2))
        h = layer_outputs(layer, activations[-1], len(x))
    return activations


def nearest_solution(inputs: Tensor, targets: Tensor, matrix: Tensor, scale: Tensor, ridge: float) -> Tensor:
    """The layer [m, units, d + 1] that trades closeness to the given one against closeness to target pre-activations.

    Args:
        inputs: A [m, r, d + 1]. targets: T [m, r, units]. matrix: W_0 [m, units, d + 1]. scale: s [d + 1], the zoo's spread of
            these weights. ridge: lambda, the price of one unit of spread in units of the targets' variance.
    """
    # argmin_W  |A W^T - T|^2 / (r v) + lambda |(W - W_0) / s|^2,  v = the targets' variance,  solved for W - W_0
    weight = 1 / (inputs.shape[1] * targets.var(dim=1).mean())
    gram = weight * (inputs.transpose(1, 2) @ inputs) + torch.diag(ridge / scale.square())
    missing = weight * (inputs.transpose(1, 2) @ (targets - inputs @ matrix.transpose(1, 2)))
    return matrix + torch.cholesky_solve(missing, torch.linalg.cholesky(gram)).transpose(1, 2)


def solve_layers(model: Classifier, weights: Tensor, x: Tensor, targets: list[Tensor], scale: Tensor, ridge: float) -> Tensor:
    """Networks [m, p] whose layers after the first were solved in turn, each on the outputs of those before it.

    Args:
        targets: pre-activations of the layers after the first, [m, n * positions, units] each. scale: [p].
    """
    first, *others = layer_matrices(model, weights)
    scales = [matrix[0, 0] for matrix in layer_matrices(model, scale[None])]
    h = layer_outputs(model.layers[0], layer_inputs(model.layers[0], x[None]) @ first.transpose(1, 2), len(x))
    solved = [first]
    for layer, matrix, target, spread in zip(model.layers[1:], others, targets, scales[1:], strict=True):
        inputs = layer_inputs(layer, h)
        solved.append(nearest_solution(inputs, target, matrix, spread, ridge))
        h = layer_outputs(layer, inputs @ solved[-1].transpose(1, 2), len(x))
    return join_matrices(solved)


@dataclass
class ActivationMatched:
    """Another generator's samples, each with its layers solved so that its units imitate those of a few training networks.

    Args:
        source: fitted together with it. tasks: by name, of which `images` training images are used. parents: training
            networks whose pre-activations are averaged, drawn anew for every sample; one would make a copy of a function.
        ridge: the price of moving weights, see `nearest_solution`. widen: what the source's spread is multiplied by.
    """

    source: Generator
    tasks: Mapping[str, Task]
    name: str = "matched"
    parents: int = 4
    ridge: float = 1e-3
    widen: float = 1.0
    images: int = 200

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Fit the source, and record what the units of the training networks do."""
        self.source.fit(zoo, contexts, seed)
        self.model, self.space = zoo.model, WeightSpace.fit(zoo)
        self.centres = mean_contexts(contexts, zoo.tasks)
        self.means, self.x, self.targets = {}, {}, {}
        for number, name in enumerate(zoo.tasks):
            train, weights = self.tasks[name].train.x, zoo.task(name).weights
            self.means[name] = weights.mean(0)
            self.x[name] = train[torch.randperm(len(train), generator=seeded(seed, number))[: self.images]]
            parts = [pre_activations(self.model, part, self.x[name])[1:] for part in weights.split(GROUP)]
            self.targets[name] = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        return self

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]; no gradient is taken."""
        name = nearest_task(self.centres, y)
        x_0 = self.means[name] + self.widen * (self.source.sample(n, y, generator) - self.means[name])
        return torch.cat([self.solve(part, name, generator) for part in x_0.split(GROUP)])

    def solve(self, weights: Tensor, name: str, generator: torch.Generator) -> Tensor:
        """The samples [m, p] of one task after matching."""
        targets = list(self.draw_targets(len(weights), name, generator))
        return solve_layers(self.model, weights, self.x[name], targets, self.space.standardiser.scale, self.ridge)

    def draw_targets(self, m: int, name: str, generator: torch.Generator) -> Iterator[Tensor]:
        """Each layer's pre-activations, averaged over random parents: [m, n * positions, units]."""
        zoo_size = len(self.targets[name][0])
        rows = torch.rand(m, zoo_size, generator=generator).argsort(1)[:, : self.parents]
        for layer in self.targets[name]:
            yield layer[rows].mean(1)
