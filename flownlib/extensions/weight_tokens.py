"""Two more pairs of networks for an autoencoder of flat weight vectors [n, p]: tokens, and p-diff's convolutions.

The first of a pair returns mean and log-variance of the latents, [n, 2k]; the second turns latents [n, k] into weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.vae import ARCHITECTURES, Architecture, Pair
from flownlib.weights import Layout


class TokenTransformer(nn.Module):
    """A transformer over tokens and `queries` more, all with embeddings of their own; attention without a mask."""

    def __init__(self, tokens: int, queries: int, width: int, depth: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(tokens + queries, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [n, tokens, width] → the queries' outputs [n, queries, width]."""
        given = tokens.shape[1]
        queries = self.positions[given:].expand(len(tokens), -1, -1)
        return self.layers(torch.cat([tokens + self.positions[:given], queries], dim=1))[:, given:]


class TokenEncoder(nn.Module):
    """Tokens of weights are read by a few latent queries, as a Perceiver does (Jaegle et al. 2021)."""

    def __init__(self, places: Tensor, latent_dim: int, queries: int, width: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.embed = nn.Linear(places.shape[1], width)
        self.transformer = TokenTransformer(len(places), queries, width, depth)
        self.head = nn.Linear(width, 2 * latent_dim // queries)

    def forward(self, weights: Tensor) -> Tensor:
        """Standardised weights [n, p] → [n, 2k]."""
        tokens = F.pad(weights, (0, 1))[:, self.places]
        mean, log_variance = self.head(self.transformer(self.embed(tokens))).chunk(2, dim=-1)
        return torch.cat([mean.flatten(1), log_variance.flatten(1)], dim=1)


class TokenDecoder(nn.Module):
    """A query for each token reads the latents and writes the token's weights."""

    def __init__(self, places: Tensor, p: int, latent_dim: int, queries: int, width: int, depth: int) -> None:
        super().__init__()
        self.queries = queries
        self.register_buffer("slots", places.flatten().argsort()[:p])  # padding has the largest number and comes last
        self.embed = nn.Linear(latent_dim // queries, width)
        self.transformer = TokenTransformer(queries, len(places), width, depth)
        self.head = nn.Linear(width, places.shape[1])

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [n, k] → standardised weights [n, p]."""
        tokens = self.head(self.transformer(self.embed(latents.unflatten(1, (self.queries, -1)))))
        return tokens.flatten(1)[:, self.slots]


def token_places(layout: Layout, size: int) -> Tensor:
    """Which weights make up each token, int64 [tokens, length]; p stands for padding.

    With a `size` above zero tokens are chunks of that many neighbours in the flat vector (SANE, Schürholt et al. 2024); with
    zero every unit is a token: its incoming weights and its bias.

    Raises:
        ValueError: if tokens shall be units and a tensor is neither a weight nor the bias of one.
    """
    p, flat = layout.size, torch.arange(layout.size)
    if size > 0:
        return F.pad(flat, (0, -p % size), value=p).view(-1, size)
    rows, places = [], layout.unflatten(flat)
    for name in layout.names:
        bias = places.get(f"{name.removesuffix('.weight')}.bias")
        if name.endswith(".weight") and bias is not None:
            rows += torch.cat([places[name].flatten(1), bias[:, None]], dim=1)
    if sum(map(len, rows)) != p:
        raise ValueError("units are tokens only where every tensor is a weight or its bias; choose a token_size above zero")
    longest = max(map(len, rows))
    return torch.stack([F.pad(row, (0, longest - len(row)), value=p) for row in rows])


def tokens(layout: Layout, latent_dim: int, width: int, size: int) -> Pair:
    """Transformers over tokens of weights; their size grows with the number of tokens by one embedding each.

    Raises:
        ValueError: if the latents cannot be shared among the queries.
    """
    depth, queries = 2, 8
    if latent_dim % queries:
        raise ValueError(f"{queries} latent tokens cannot share {latent_dim} numbers; choose a multiple of {queries}")
    places = token_places(layout, size)
    sizes = (latent_dim, queries, width, depth)
    return TokenEncoder(places, *sizes), TokenDecoder(places, layout.size, *sizes)


def convolutions(p: int, latent_dim: int, width: int) -> Pair:
    """One-dimensional convolutions along the flat vector, a quarter of its length at every stage (p-diff, Wang et al. 2024)."""
    stages = 3
    length = math.ceil(p / 4**stages)
    padding = length * 4**stages - p
    down: list[nn.Module] = [nn.ConstantPad1d((0, padding), 0.0), nn.Unflatten(1, (1, -1))]
    up: list[nn.Module] = [nn.Linear(latent_dim, width * length), nn.Unflatten(1, (width, length))]
    for stage in range(stages):
        first, last = stage == 0, stage == stages - 1
        down += [nn.Conv1d(1 if first else width, width, 7, stride=4, padding=2), nn.LeakyReLU(0.1)]
        up += [nn.ConvTranspose1d(width, 1 if last else width, 8, stride=4, padding=2)] + [nn.LeakyReLU(0.1)] * (not last)
    down += [nn.Flatten(), nn.Linear(width * length, 2 * latent_dim)]
    return nn.Sequential(*down), nn.Sequential(*up, nn.Flatten(), nn.ConstantPad1d((0, -padding), 0.0))


ARCHITECTURES["tokens"] = Architecture(lambda model, s: tokens(model.layout, s.latent_dim, s.width, s.token_size))
ARCHITECTURES["conv1d"] = Architecture(lambda model, s: convolutions(model.layout.size, s.latent_dim, s.width))
