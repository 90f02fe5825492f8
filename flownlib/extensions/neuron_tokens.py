"""Velocity networks v(x, t; y): a residual perceptron for latents, a transformer over neurons for weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.extensions.weight_tokens import token_places
from flownlib.flow import PATHS, StraightPath, VelocityNetwork
from flownlib.generators import FlowGenerator
from flownlib.weights import Layout
from flownlib.zoo import Zoo


class NeuronTokens(VelocityNetwork):
    """A transformer whose tokens are the classifier's units, each with its incoming weights and bias; x are weights [n, p].

    The tokens of the head, one a class, see the context of their own class besides that of the whole task.

    Args:
        layout: of the weights. classes: of the head, whose units are the last tokens. context_dim: c, the contexts of all
            classes one after the other. width: a multiple of `heads`.

    Raises:
        ValueError: if the context cannot be divided among the classes, or a tensor is neither weight nor bias of a unit.
    """

    def __init__(
        self,
        layout: Layout,
        classes: int,
        context_dim: int,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        predicts: str = "x_1",
        path: StraightPath | None = None,
    ) -> None:
        super().__init__(width, context_dim, None, predicts, path)
        if context_dim % classes:
            raise ValueError(f"a context of {context_dim} numbers cannot be divided among {classes} classes")
        places = token_places(layout, 0)
        self.classes = classes
        self.register_buffer("places", places)
        self.register_buffer("slots", places.flatten().argsort()[: layout.size])  # padding comes last
        self.enter = nn.Linear(places.shape[1], width)
        self.position = nn.Parameter(0.02 * torch.randn(len(places), width))
        self.own_class = nn.Linear(context_dim // classes, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        # weights of different units have little in common, so each token has a last layer of its own
        self.leave = nn.Parameter(torch.zeros(len(places), width, places.shape[1]))
        self.share = nn.Parameter(torch.zeros(len(places), places.shape[1]))

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, condition_mask: Tensor | None = None) -> Tensor:
        """The network's own output [n, p]; `condition_mask` bool [n] is False where the context is dropped."""
        tokens = F.pad(x, (0, 1))[:, self.places]
        h = self.enter(tokens) + self.position + self.embed(t, y, condition_mask)[:, None]
        if y is not None:
            own = self.own_class(y.unflatten(1, (self.classes, -1)))
            own = own if condition_mask is None else own * condition_mask[:, None, None]
            h = torch.cat([h[:, : -self.classes], h[:, -self.classes :] + own], dim=1)
        h = torch.einsum("ntw,twl->ntl", self.norm(self.blocks(h)), self.leave)
        # a share of the input, learned for every weight: a denoiser starts from what it is given
        return (h + self.share * tokens).flatten(1)[:, self.slots]


def neuron_tokens(generator: FlowGenerator, zoo: Zoo) -> NeuronTokens:
    """The velocity network of a `FlowGenerator` in `WeightSpace`: `FlowGenerator(…, network=neuron_tokens)`."""
    path = PATHS[generator.path]()
    return NeuronTokens(
        zoo.layout, zoo.model.num_classes, generator.contexts.dim, generator.width, predicts=generator.predicts, path=path
    )
