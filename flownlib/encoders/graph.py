"""A network as its neural graph, and the pair of networks that encode and decode it node by node.

The nodes are the inputs, hidden units and outputs; a bias belongs to a node, a weight or a kernel to an edge (Kofinas et al.
2024). Nothing here tells one hidden unit from another but its numbers, so permuting the units permutes the latents, and
decoding gives the permuted network back (Navon et al. 2023, Zhou et al. 2023). No parameter depends on how many hidden
units there are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from flownlib.classifiers import Classifier, Conv


@dataclass(frozen=True)
class Graph:
    """How a classifier's flat weights lie on its neural graph: the nodes of each layer, inputs first, and the numbers an edge carries."""

    model: Classifier
    units: tuple[int, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, model: Classifier) -> Graph:
        """The graph of convolutions and linear layers; the inputs are channels, or pixels where a linear layer comes first.

        Raises:
            ValueError: if the model is not made of such layers.
        """
        if not isinstance(model, Classifier):
            raise ValueError(f"the neural graph of {model.name} is not known here; it takes convolutions and linear layers")
        channels = model.image_shape[0] if isinstance(model.layers[0], Conv) else math.prod(model.image_shape)
        weights = model.layout.shapes[::2]
        units = (channels, *(shape[0] for shape in weights))
        # after the convolutions each unit feeds as many inputs of a linear layer as its channel has positions
        numbers = tuple(math.prod(shape[1:]) // below for shape, below in zip(weights, units, strict=False))
        return cls(model, units, numbers)

    def split(self, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Flat weights [n, p] → for each layer the edges [n, out, in, numbers] and the biases [n, out]."""
        tensors = list(self.model.layout.views(weights).values())
        sizes = zip(tensors[::2], pairwise(self.units), self.numbers, strict=True)
        edges = [weight.reshape(-1, above, below, numbers) for weight, (below, above), numbers in sizes]
        return edges, tensors[1::2]

    def join(self, edges: list[Tensor], biases: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        parts = [part.flatten(1) for pair in zip(edges, biases, strict=True) for part in pair]
        return torch.cat(parts, dim=1)

    def nodes(self, latents: Tensor) -> list[Tensor]:
        """Flat latents [n, k] → those of each layer's nodes [n, units, node_dim], inputs left out."""
        return list(latents.unflatten(-1, (sum(self.units[1:]), -1)).split(self.units[1:], dim=-2))


class Keys(nn.Module):
    """Binds the features of a node to each number of its edges: a learned product, in which an edge's two ends meet."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.code = nn.Parameter(torch.randn(numbers, width))

    def forward(self, nodes: Tensor) -> Tensor:
        """Nodes [n, units, width] → keys [n, units * numbers, width]."""
        return (self.project(nodes)[:, :, None] * self.code).flatten(1, 2)


class Exchange(nn.Module):
    """One layer's nodes hear from the layers below and above, and are updated."""

    def __init__(self, width: int, numbers_below: int, numbers_above: int | None) -> None:
        super().__init__()
        self.below = Keys(width, numbers_below)
        self.above = Keys(width, numbers_above) if numbers_above else None
        self.update = two_layers((3 if numbers_above else 2) * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, nodes: Tensor, below: Tensor, into: Tensor, above: Tensor | None, out_of: Tensor | None) -> Tensor:
        """Nodes [n, units, width] and their neighbours', with edges into [n, units, in, numbers] and out of [n, out, units, numbers] them."""
        # message to i = sum over j and t of W_ij[t] (A h_j ⊙ c_t) / sqrt(how many)
        heard = [nodes, message(into, self.below(below))]
        if self.above is not None:
            heard.append(message(out_of.transpose(1, 2), self.above(above)))
        return self.norm(nodes + self.update(torch.cat(heard, dim=-1)))


def message(edges: Tensor, keys: Tensor) -> Tensor:
    """What each of `to` nodes hears over edges [n, to, from, numbers] from nodes with keys [n, from * numbers, width]."""
    edges = edges.flatten(2)
    return edges @ keys / math.sqrt(edges.shape[-1])


def two_layers(inputs: int, width: int, outputs: int | None = None) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs or width))


class OnGraph(nn.Module):
    """What encoder and decoder share: a graph, and learned features of the nodes that have a fixed place, inputs and outputs."""

    def __init__(self, model: Classifier, width: int) -> None:
        super().__init__()
        self.graph = Graph.of(model)
        self.inputs = nn.Parameter(torch.randn(1, self.graph.units[0], width))
        self.outputs = nn.Parameter(torch.randn(1, self.graph.units[-1], width))

    def on(self, model: Classifier) -> Self:
        """The same parameters, shared, for a classifier with other hidden widths.

        Raises:
            ValueError: if inputs, outputs, depth or kernels differ.
        """
        graph, mine = Graph.of(model), self.graph
        if (graph.units[0], graph.units[-1], graph.numbers) != (mine.units[0], mine.units[-1], mine.numbers):
            raise ValueError(f"{model.name} differs from {mine.model.name} in more than the widths of its hidden layers")
        other = copy.copy(self)
        other.graph = graph
        return other


class GraphEncoder(OnGraph):
    """Standardised weights [n, p] → mean and log-variance [n, 2k] of the latents, `node_dim` for each hidden and output unit."""

    def __init__(self, model: Classifier, node_dim: int, width: int, rounds: int) -> None:
        super().__init__(model, width)
        numbers = self.graph.numbers
        self.node_dim = node_dim
        around = list(zip(numbers, (*numbers[1:], None), strict=True))
        self.biases = nn.ModuleList(nn.Linear(1, width) for _ in numbers)
        self.rounds = nn.ModuleList(nn.ModuleList(Exchange(width, *pair) for pair in around) for _ in range(rounds))
        self.latents = nn.ModuleList(nn.Linear(width, 2 * node_dim) for _ in numbers)

    @property
    def latent_dim(self) -> int:
        """k."""
        return self.node_dim * sum(self.graph.units[1:])

    def forward(self, standard: Tensor) -> Tensor:
        """[n, p] → [n, 2k]."""
        edges, biases = self.graph.split(standard)
        nodes = [lift(bias[..., None]) for lift, bias in zip(self.biases, biases, strict=True)]
        nodes[-1] = nodes[-1] + self.outputs
        nodes, last = [self.inputs, *nodes], len(nodes)
        for number, exchanges in enumerate(self.rounds):
            # up the network, then down again: each layer hears what the one before it has just learned
            for layer in range(1, last + 1) if number % 2 == 0 else range(last, 0, -1):
                beyond = (nodes[layer + 1], edges[layer]) if layer < last else (None, None)
                nodes[layer] = exchanges[layer - 1](nodes[layer], nodes[layer - 1], edges[layer - 1], *beyond)
        posterior = [read(features) for read, features in zip(self.latents, nodes[1:], strict=True)]
        mean, log_variance = torch.cat(posterior, dim=1).chunk(2, dim=-1)
        return torch.cat([mean.flatten(1), log_variance.flatten(1)], dim=1)

    def channel_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [k] of latents [n, k], each over networks and the units of a layer, so alike for all its units."""
        layers = self.graph.nodes(latents)
        means = [nodes.mean((0, 1)).expand(nodes.shape[1:]) for nodes in layers]
        deviations = [nodes.std((0, 1)).expand(nodes.shape[1:]) for nodes in layers]
        return torch.cat(means).flatten(), torch.cat(deviations).flatten()

    def pooled(self, latents: Tensor) -> Tensor:
        """An invariant summary [n, 2 * layers * node_dim] of latents [n, k]: their mean and root mean square over each layer's units."""
        layers = self.graph.nodes(latents)
        return torch.cat([part for nodes in layers for part in (nodes.mean(1), nodes.square().mean(1).sqrt())], dim=1)


class GraphDecoder(OnGraph):
    """Latents [n, k] → standardised weights [n, p]: an edge is made from the latents at its two ends, a bias from its node's."""

    def __init__(self, model: Classifier, node_dim: int, width: int) -> None:
        super().__init__(model, width)
        numbers = self.graph.numbers
        self.lift = nn.ModuleList(two_layers(node_dim, width) for _ in numbers)
        self.upper = nn.ModuleList(nn.Linear(width, width) for _ in numbers)
        self.lower = nn.ModuleList(Keys(width, count) for count in numbers)
        self.biases = nn.ModuleList(nn.Linear(width, 1) for _ in numbers)

    def forward(self, latents: Tensor) -> Tensor:
        """[n, k] → [n, p]."""
        nodes = [lift(z) for lift, z in zip(self.lift, self.graph.nodes(latents), strict=True)]
        nodes[-1] = nodes[-1] + self.outputs
        below = [self.inputs.expand(len(latents), -1, -1), *nodes[:-1]]
        edges = []
        for features, under, upper, lower in zip(nodes, below, self.upper, self.lower, strict=True):
            # W_ij[t] = sum over r of (B h_i)_r (A h_j ⊙ c_t)_r / sqrt(width)
            edges.append(upper(features) @ lower(under).transpose(1, 2) / math.sqrt(features.shape[-1]))
        return self.graph.join(edges, [bias(features) for bias, features in zip(self.biases, nodes, strict=True)])


def graph_networks(model: Classifier, node_dim: int, width: int, rounds: int) -> tuple[GraphEncoder, GraphDecoder]:
    """Encoder and decoder for a VAE whose latents are `node_dim` numbers for each hidden and each output unit.

    Args:
        width: features of a node. rounds: how often every node hears from its neighbours.

    Raises:
        ValueError: if the model is not made of convolutions and linear layers.
    """
    return GraphEncoder(model, node_dim, width, rounds), GraphDecoder(model, node_dim, width)
