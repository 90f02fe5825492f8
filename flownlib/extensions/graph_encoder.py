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

from flownlib.encoders import Standardiser
from flownlib.networks import Classifier, Conv
from flownlib.vae import ARCHITECTURES, Architecture
from flownlib.weights import Layout


@dataclass(frozen=True)
class Graph:
    """How flat weights lie on a neural graph: the nodes of each layer, inputs first, and the numbers on an edge into each."""

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
        tensors = list(self.model.layout.unflatten(weights).values())
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


class Mix(nn.Module):
    """A linear map plus a perceptron with one hidden layer."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.perceptron = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., width]."""
        return self.linear(x) + self.perceptron(x)


class EdgeKeys(nn.Module):
    """Binds the features h_j of a node to each number t of its edges: the keys A h_j ⊙ c_t."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.code = nn.Parameter(torch.randn(numbers, width))

    def forward(self, nodes: Tensor) -> Tensor:
        """Nodes [n, units, width] → keys [n, units * numbers, width]."""
        return (self.project(nodes)[:, :, None] * self.code).flatten(1, 2)


def orthogonalised(nodes: Tensor) -> Tensor:
    """The nodes of a layer [n, units, width] made nearly orthogonal to each other, so that what is bound to one stays its own.

    The symmetric orthogonalisation of Löwdin (1950) treats all units alike: permuting them permutes the result.
    """
    identity = torch.eye(nodes.shape[1], dtype=nodes.dtype, device=nodes.device)
    gram = nodes @ nodes.transpose(1, 2) / nodes.shape[2] + 0.1 * identity
    size = gram.flatten(1).norm(dim=1)[:, None, None]
    root, inverse = gram / size, identity.expand_as(gram)
    for _ in range(5):
        # Newton's iteration towards G^(1/2) and G^(-1/2) (Higham 1997)
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    # (X X' / width + 0.1)^(-1/2) X
    return inverse @ nodes / size.sqrt()


class EdgeDecoder(nn.Module):
    """The numbers on the edges between two layers, made from the features of both ends."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.above, self.below = nn.Linear(width, width), EdgeKeys(width, numbers)

    def forward(self, above: Tensor, below: Tensor) -> Tensor:
        """Nodes [n, out, width] and [n, in, width] → edges [n, out, in, numbers]."""
        # W_ij[t] = B h_i · (A h_j ⊙ c_t) / sqrt(width)
        edges = self.above(above) @ self.below(below).transpose(1, 2) / math.sqrt(above.shape[-1])
        return edges.unflatten(2, (below.shape[1], -1))


class Message(nn.Module):
    """Messages to nodes over their edges to a neighbouring layer: `EdgeDecoder` in reverse, a sum over that layer's keys."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.keys = EdgeKeys(width, numbers)

    def forward(self, edges: Tensor, neighbours: Tensor) -> Tensor:
        """Edges [n, units, neighbours, numbers] and nodes [n, neighbours, width] → messages [n, units, width]."""
        # m_i = sum over j and t of W_ij[t] (A h_j ⊙ c_t) / sqrt(how many)
        return edges.flatten(2) @ self.keys(neighbours) / math.sqrt(edges[0, 0].numel())


class MessagePassingLayer(nn.Module):
    """Messages from the layers below and above over residual edges: what their ends' features do not give of the edges yet."""

    def __init__(self, width: int, numbers: tuple[int, ...], upwards: bool) -> None:
        super().__init__()
        self.upwards = upwards
        self.decoders = nn.ModuleList(EdgeDecoder(width, count) for count in numbers)
        self.from_below = nn.ModuleList(Message(width, count) for count in numbers)
        self.from_above = nn.ModuleList(Message(width, count) for count in numbers[1:])
        self.updates = nn.ModuleList(Mix((3 if i + 1 < len(numbers) else 2) * width, width) for i in range(len(numbers)))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in numbers)

    def forward(self, nodes: list[Tensor], keys: list[Tensor], edges: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The nodes' features and their keys, which are the features `orthogonalised`, updated layer after layer.

        Args:
            nodes, keys: [n, units, width] for each layer, inputs first. edges: [n, out, in, numbers] into each other layer.
        """
        nodes, keys, count = list(nodes), list(keys), len(edges)
        residual_edges = [edges[i] - self.decoders[i](nodes[i + 1], keys[i]) for i in range(count)]
        # each layer is sent what the one before it has just learned
        for i in range(count) if self.upwards else reversed(range(count)):
            messages = [nodes[i + 1], self.from_below[i](residual_edges[i], keys[i])]
            if i + 1 < count:
                messages.append(self.from_above[i](residual_edges[i + 1].transpose(1, 2), keys[i + 2]))
            nodes[i + 1] = self.norms[i](nodes[i + 1] + self.updates[i](torch.cat(messages, dim=-1)))
            keys[i + 1] = orthogonalised(nodes[i + 1])
        return nodes, keys


class OnGraph(nn.Module):
    """What encoder and decoder share: a graph, and learned features of the nodes whose place is fixed, inputs and outputs."""

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
    """Standardised weights [n, p] → mean and log-variance [n, 2k] of `node_dim` latents for each hidden and output unit."""

    def __init__(self, model: Classifier, node_dim: int, width: int, rounds: int) -> None:
        super().__init__(model, width)
        numbers = self.graph.numbers
        self.node_dim = node_dim
        self.biases = nn.ModuleList(nn.Linear(1, width) for _ in numbers)
        self.rounds = nn.ModuleList(MessagePassingLayer(width, numbers, upwards=number % 2 == 0) for number in range(rounds))
        self.latents = nn.ModuleList(nn.Linear(width, 2 * node_dim) for _ in numbers)
        for read in self.latents:
            nn.init.constant_(read.bias[node_dim:], -5.0)  # little noise at first, or it drowns the latents

    @property
    def latent_dim(self) -> int:
        """k."""
        return self.node_dim * sum(self.graph.units[1:])

    def forward(self, standard: Tensor) -> Tensor:
        """[n, p] → [n, 2k]."""
        edges, biases = self.graph.split(standard)
        nodes = [lift(bias[..., None]) for lift, bias in zip(self.biases, biases, strict=True)]
        nodes[-1] = nodes[-1] + self.outputs
        keys = [self.inputs, *map(orthogonalised, nodes)]
        nodes = [self.inputs, *nodes]
        for layer in self.rounds:
            nodes, keys = layer(nodes, keys, edges)
        posterior = [read(features) for read, features in zip(self.latents, nodes[1:], strict=True)]
        mean, log_variance = torch.cat(posterior, dim=1).chunk(2, dim=-1)
        return torch.cat([mean.flatten(1), log_variance.flatten(1)], dim=1)

    def channel_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [k] of latents [n, k] over networks and a layer's units, so alike for all of them."""
        layers = self.graph.nodes(latents)
        means = [nodes.mean((0, 1)).expand(nodes.shape[1:]) for nodes in layers]
        deviations = [nodes.std((0, 1)).expand(nodes.shape[1:]) for nodes in layers]
        return torch.cat(means).flatten(), torch.cat(deviations).flatten()


class GraphDecoder(OnGraph):
    """Latents [n, k] → standardised weights [n, p]: an edge is made from the latents at its two ends, a bias from its own."""

    def __init__(self, model: Classifier, node_dim: int, width: int) -> None:
        super().__init__(model, width)
        numbers = self.graph.numbers
        self.lift = nn.ModuleList(Mix(node_dim, width) for _ in numbers)
        self.edges = nn.ModuleList(EdgeDecoder(width, count) for count in numbers)
        self.biases = nn.ModuleList(nn.Linear(width, 1) for _ in numbers)

    def forward(self, latents: Tensor) -> Tensor:
        """[n, k] → [n, p]."""
        nodes = [lift(z) for lift, z in zip(self.lift, self.graph.nodes(latents), strict=True)]
        nodes[-1] = nodes[-1] + self.outputs
        keys = [self.inputs, *map(orthogonalised, nodes[:-1])]
        edges = [decoder(*ends) for decoder, *ends in zip(self.edges, nodes, keys, strict=True)]
        return self.graph.join(edges, [bias(features) for bias, features in zip(self.biases, nodes, strict=True)])


def standardiser_by_tensor(weights: Tensor, layout: Layout) -> Standardiser:
    """One mean and one standard deviation for each tensor [p] of networks [n, p], so that hidden units are treated alike."""
    mean, scale = torch.empty_like(weights[0]), torch.empty_like(weights[0])
    for place in layout.slices().values():
        mean[place] = weights[:, place].mean()
        scale[place] = weights[:, place].std(correction=0).clamp(min=1e-8)
    return Standardiser(mean, scale)


def graph_networks(model: Classifier, node_dim: int, width: int, rounds: int) -> tuple[GraphEncoder, GraphDecoder]:
    """Encoder and decoder for a VAE whose latents are `node_dim` numbers for each hidden and each output unit.

    Args:
        width: features of a node. rounds: of messages between neighbours.

    Raises:
        ValueError: if the model is not made of convolutions and linear layers.
    """
    return GraphEncoder(model, node_dim, width, rounds), GraphDecoder(model, node_dim, width)


ARCHITECTURES["graph"] = Architecture(
    lambda model, s: graph_networks(model, s.node_dim, s.width, s.rounds),
    standardise=standardiser_by_tensor,
    latent_scale=lambda vae, latents: vae.encoder.channel_statistics(latents),
)
