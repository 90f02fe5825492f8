"""What a classifier is, and the small networks whose weights we generate, evaluated many at once.

A classifier is data (a tuple of layers), so its forward pass, its plain `torch.nn` module and its symmetries all come
from one description.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.weights import Axis, Float, Group, Layout, Rescaling, Symmetries


class Model(Protocol):
    """Anything whose weights can be put in a zoo: it says where each number lies, and runs many networks at once."""

    @property
    def name(self) -> str:
        """What a stored zoo calls it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""

    @property
    def layout(self) -> Layout:
        """Where each tensor lies in a weight vector."""

    @property
    def num_classes(self) -> int:
        """Number of logits."""

    @property
    def largest_activation(self) -> int:
        """Numbers in the largest activation of one network on one image."""

    @property
    def symmetries(self) -> Symmetries:
        """What leaves its function as it is; asking raises ValueError where that is not known."""

    def initialise(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Fresh weights [n, p]."""

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """Logits [m, b, classes] of m networks [m, p] on images [b, c, h, w], or on each one's own [m, b, c, h, w]."""

    def module(self) -> nn.Module:
        """A fresh plain module of this kind."""


@dataclass(frozen=True)
class Conv:
    """Convolution, ReLU, then max-pooling by `pool`."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 1


@dataclass(frozen=True)
class Linear:
    """Affine map; every one but the last is followed by a ReLU."""

    in_features: int
    out_features: int


def conv_relu(x: Tensor, kernel: Tensor, bias: Tensor, conv: Conv, groups: int | None) -> Float[Tensor, "b mo h w"]:
    """Activations relu(conv(x, kernel) + bias) [b, m o, h', w'] of m networks side by side.

    Args:
        x: images [b, c, h, w] that all networks see, or [b, m c, h, w], each network's own channels.
        kernel: [m o, c, k, k].
        bias: [m o].
        conv: stride and padding.
        groups: m, or None for images that all networks see.
    """
    return F.conv2d(x, kernel, bias, conv.stride, conv.padding, groups=groups or 1).relu()


CONVOLUTIONS: list[Callable[[Tensor, Tensor, Tensor, Conv, int | None], Tensor]] = [conv_relu]  # the last one is used


@dataclass(frozen=True)
class Classifier:
    """Convolutions, then linear layers, of which the last is the head that returns logits."""

    name: str
    image_shape: tuple[int, int, int]
    layers: tuple[Conv | Linear, ...]

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """`conv1, conv2, …, fc1, fc2, …` in order of use."""
        convs = sum(isinstance(layer, Conv) for layer in self.layers)
        return tuple(f"conv{i + 1}" if isinstance(layer, Conv) else f"fc{i + 1 - convs}" for i, layer in enumerate(self.layers))

    @cached_property
    def layout(self) -> Layout:
        """The flat layout; equal to that of `module().state_dict()`."""
        names: list[str] = []
        shapes: list[tuple[int, ...]] = []
        for name, layer in zip(self.layer_names, self.layers, strict=True):
            shape: tuple[int, ...]
            if isinstance(layer, Conv):
                shape = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
            else:
                shape = (layer.out_features, layer.in_features)
            names += [f"{name}.weight", f"{name}.bias"]
            shapes += [shape, shape[:1]]
        return Layout(tuple(names), tuple(shapes))

    @cached_property
    def largest_activation(self) -> int:
        """Numbers in the largest activation of one network on one image."""
        height, width = self.image_shape[1:]
        sizes = []
        for layer in self.layers:
            if isinstance(layer, Conv):
                height, width = ((n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in (height, width))
                sizes.append(layer.out_channels * height * width)
                height, width = height // layer.pool, width // layer.pool
            else:
                sizes.append(layer.out_features)
        return max(sizes)

    @cached_property
    def symmetries(self) -> Symmetries:
        """Layer by layer: units are the rows of one layer and the columns of the next."""
        groups, rescalings = [], []
        names, shapes = self.layer_names, dict(zip(self.layout.names, self.layout.shapes, strict=True))
        for name, following, layer in zip(names[:-1], names[1:], self.layers[1:], strict=True):
            (units,) = shapes[f"{name}.bias"]
            repeat = layer.in_features // units if isinstance(layer, Linear) else 1
            into = (Axis(f"{name}.weight", 0), Axis(f"{name}.bias", 0))
            out = (Axis(f"{following}.weight", 1, repeat),)
            groups.append(Group(units, into + out))
            rescalings.append(Rescaling(into, out))
        return Symmetries(tuple(groups), tuple(rescalings))

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.layout.shapes[-1][0]

    @cached_property
    def head_size(self) -> int:
        """How many of the flat vector's last entries belong to the head."""
        return math.prod(self.layout.shapes[-2]) + self.layout.shapes[-1][0]

    def module(self) -> nn.Sequential:
        """The same network as a plain `torch.nn.Sequential`, freshly initialised by torch."""
        parts: list[tuple[str, nn.Module]] = []
        for i, (name, layer) in enumerate(zip(self.layer_names, self.layers, strict=True)):
            if isinstance(layer, Conv):
                conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding)
                parts += [(name, conv), (f"relu_{name}", nn.ReLU())]
                if layer.pool > 1:
                    parts.append((f"pool_{name}", nn.MaxPool2d(layer.pool)))
            else:
                if i == 0 or isinstance(self.layers[i - 1], Conv):
                    parts.append(("flatten", nn.Flatten()))
                parts.append((name, nn.Linear(layer.in_features, layer.out_features)))
                if i + 1 < len(self.layers):
                    parts.append((f"relu_{name}", nn.ReLU()))
        return nn.Sequential(OrderedDict(parts))

    def initialise(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Kaiming-uniform weights [n, p] as torch initialises these layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        parts = []
        for i in range(0, len(self.layout.shapes), 2):
            weight = self.layout.shapes[i]
            fan_in = math.prod(weight[1:])
            numbers = torch.rand(n, math.prod(weight) + weight[0], generator=generator, dtype=dtype, device=generator.device)
            parts.append((2 * numbers - 1) / math.sqrt(fan_in))
        return torch.cat(parts, dim=1)

    def features(self, weights: Tensor, x: Tensor) -> Tensor:
        """The head's inputs [m, b, d]; arguments as in `forward`."""
        return self._run(weights, x, self.layers[:-1])

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """Logits [m, b, classes] of m networks.

        Args:
            weights: [m, p].
            x: images [b, c, h, w] that all networks see, or [m, b, c, h, w], each network's own.
        """
        return self._run(weights, x, self.layers)

    def _run(self, weights: Tensor, x: Tensor, layers: tuple[Conv | Linear, ...]) -> Tensor:
        m, shared = len(weights), x.dim() == 4
        tensors = self.layout.unflatten(weights)
        # m networks side by side are one network with m groups of channels
        h = x if shared else x.transpose(0, 1).flatten(1, 2)
        for name, layer in zip(self.layer_names, layers, strict=False):
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            if isinstance(layer, Conv):
                kernel, biases = weight.flatten(0, 1), bias.flatten()
                h, shared = CONVOLUTIONS[-1](h, kernel, biases, layer, None if shared else m), False
                h = F.max_pool2d(h, layer.pool) if layer.pool > 1 else h
                continue
            if shared:
                h, shared = h.flatten(1).expand(m, -1, -1), False
            elif h.dim() == 4:
                h = h.reshape(len(h), m, -1).transpose(0, 1)
            h = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            if layer is not self.layers[-1]:
                h = h.relu_()
        return h.reshape(len(h), m, -1).transpose(0, 1) if h.dim() == 4 else h


def cnn_small(channels: int = 1, strided: bool = True) -> Classifier:
    """The model-zoo CNN (Schürholt et al. 2022): 2,464 parameters on 28 × 28 × 1, 2,864 on three channels.

    By default strides replace max-pooling, which keeps every parameter's shape at a quarter of the arithmetic.
    """
    stride, pool = (2, 1) if strided else (1, 2)
    convolutions = Conv(channels, 8, 5, stride, pool=pool), Conv(8, 6, 5, stride, pool=pool), Conv(6, 4, 2)
    name = "cnn_small" + ("" if strided else "_pool") + ("" if channels == 1 else "_rgb")
    return Classifier(name, (channels, 28, 28), (*convolutions, Linear(36, 20), Linear(20, 10)))


def cnn_medium(channels: int = 3) -> Classifier:
    """The larger model-zoo CNN: 10,853 parameters on 32 × 32 × 3."""
    convolutions = Conv(channels, 16, 3, pool=2), Conv(16, 32, 3, pool=2), Conv(32, 15, 3, pool=2)
    name = "cnn_medium" + ("" if channels == 3 else "_grey")
    return Classifier(name, (channels, 32, 32), (*convolutions, Linear(60, 20), Linear(20, 10)))


def cnn_embed() -> Classifier:
    """2,218 parameters on 28 × 28 × 1 with a 64-number embedding under the head: a body that few-shot methods can share."""
    return Classifier("cnn_embed", (1, 28, 28), (Conv(1, 8, 7, 4, 1), Conv(8, 16, 3, 2), Linear(64, 10)))


def mlp(hidden: tuple[int, ...] = (32,), image_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> Classifier:
    """A multilayer perceptron with hidden layers of the given widths; `mlp_1x28x28_32_10` by default."""
    widths = (math.prod(image_shape), *hidden, classes)
    name = "mlp_" + "x".join(map(str, image_shape)) + "".join(f"_{width}" for width in widths[1:])
    return Classifier(name, image_shape, tuple(Linear(a, b) for a, b in pairwise(widths)))


_CNNS = (cnn_small(), cnn_small(3), cnn_small(1, False), cnn_small(3, False), cnn_medium(), cnn_medium(1), cnn_embed())
CLASSIFIERS = {cnn.name: cnn for cnn in _CNNS}


def classifier(name: str) -> Classifier:
    """The classifier of that name: one of CLASSIFIERS, or a perceptron such as `mlp_1x28x28_64_32_10`.

    Raises:
        ValueError: if there is none.
    """
    if name in CLASSIFIERS:
        return CLASSIFIERS[name]
    perceptron = re.fullmatch(r"mlp_(N)x(N)x(N)((?:_N)+)".replace("N", "[1-9][0-9]{0,6}"), name)
    if not perceptron:
        raise ValueError(
            f"there is no classifier {name!r}; choose one of {', '.join(CLASSIFIERS)} or mlp_1x28x28_32_10 and the like"
        )
    *hidden, classes = map(int, perceptron[4][1:].split("_"))
    return mlp(tuple(hidden), (int(perceptron[1]), int(perceptron[2]), int(perceptron[3])), classes)
