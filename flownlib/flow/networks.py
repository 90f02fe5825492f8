"""Velocity networks v(x, t; y): a residual perceptron for latents, a transformer over neurons for weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.encoders.networks import token_places
from flownlib.flow.paths import PREDICTIONS, StraightPath
from flownlib.layout import Layout


class TimeFeatures(nn.Module):
    """Sines and cosines of t at frequencies spread evenly in log space: [n] → [n, 2 * count]."""

    def __init__(self, count: int = 16, highest: float = 60.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(highest), count)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class VelocityNetwork(nn.Module, ABC):
    """What every velocity network shares: time and context embedded in one vector, and a velocity from what is predicted.

    Args:
        width: of the embedding. context: y [n, c] → [n, width]; None for an unconditional flow. predicts: what the network
            itself outputs, one of PREDICTIONS; the module returns a velocity either way. path: along which it is trained.

    Raises:
        ValueError: for an unknown prediction.
    """

    def __init__(self, width: int, context: nn.Module | None, predicts: str, path: StraightPath | None) -> None:
        super().__init__()
        if predicts not in PREDICTIONS:
            raise ValueError(f"a velocity network predicts {', '.join(map(repr, PREDICTIONS))}, not {predicts!r}")
        self.predicts, self.path = predicts, path or StraightPath()
        self.time = nn.Sequential(TimeFeatures(), nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.context = context
        self.no_context = nn.Parameter(torch.zeros(width))

    def embed(self, t: Tensor, y: Tensor | None, keep: Tensor | None) -> Tensor:
        """Time and context as one vector [n, width]; `keep` bool [n] is False where the context is dropped."""
        embedding = self.no_context.expand(len(t), -1) if y is None or self.context is None else self.context(y)
        if keep is not None:
            embedding = torch.where(keep[:, None], embedding, self.no_context)
        return F.silu(self.time(t) + embedding)

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `keep` bool [n] is False where the context is dropped."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The velocity [n, d]; y=None asks for the unconditional field."""
        return self.path.convert(x, t, self.predict(x, t, y), self.predicts, "velocity")


def context_perceptron(context_dim: int, width: int) -> nn.Module | None:
    """The simplest reader of a context, or None where there is none to read."""
    return nn.Sequential(nn.Linear(context_dim, width), nn.SiLU(), nn.Linear(width, width)) if context_dim else None


class VelocityMLP(VelocityNetwork):
    """A residual MLP whose blocks are scaled and shifted (FiLM) by the embedding of t and y.

    Args:
        dim: d. context_dim: c, 0 for an unconditional flow. context: in place of a perceptron, e.g. a CAML-style transformer.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        width: int = 256,
        depth: int = 3,
        predicts: str = "velocity",
        path: StraightPath | None = None,
        context: nn.Module | None = None,
    ) -> None:
        super().__init__(width, context or context_perceptron(context_dim, width), predicts, path)
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """The network's own output [n, d]; `keep` bool [n] is False where the context is dropped."""
        embedding = self.embed(t, y, keep)
        h = self.enter(x)
        for block, norm, film in zip(self.blocks, self.norms, self.films, strict=True):
            scale, shift = film(embedding).chunk(2, dim=-1)
            h = h + block(norm(h) * (1 + scale) + shift)
        return self.leave(h)


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
        super().__init__(width, context_perceptron(context_dim, width), predicts, path)
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

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """The network's own output [n, p]; `keep` bool [n] is False where the context is dropped."""
        tokens = F.pad(x, (0, 1))[:, self.places]
        h = self.enter(tokens) + self.position + self.embed(t, y, keep)[:, None]
        if y is not None:
            own = self.own_class(y.unflatten(1, (self.classes, -1)))
            own = own if keep is None else own * keep[:, None, None]
            h = torch.cat([h[:, : -self.classes], h[:, -self.classes :] + own], dim=1)
        h = torch.einsum("ntw,twl->ntl", self.norm(self.blocks(h)), self.leave)
        # a share of the input, learned for every weight: a denoiser starts from what it is given
        return (h + self.share * tokens).flatten(1)[:, self.slots]
