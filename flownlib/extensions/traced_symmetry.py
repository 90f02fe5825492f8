"""The symmetries of any module, read off its graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from flownlib.symmetry import rescale
from flownlib.weights import Axis, Group, Rescaling, Symmetries, Tensors

SMALLEST_VARIANCE = 1e-4  # of a channel that is brought to variance one; a dead one keeps a finite scale

Item = TypeVar("Item")
# what the graph of a module may hold: kinds of modules, functions, and names of tensor methods
LINEAR = {nn.Conv2d, nn.Linear}
NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
FLATTENINGS = {nn.Flatten, torch.flatten, "flatten"}
HOMOGENEOUS = {
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, torch.relu, F.relu, F.leaky_relu, "relu", "relu_"),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, F.max_pool2d, F.avg_pool2d),
    F.adaptive_avg_pool2d,
}
ELEMENTWISE = {
    *(nn.GELU, nn.SiLU, nn.ELU, nn.ReLU6, nn.Softplus, nn.Tanh, nn.Sigmoid, F.gelu, F.silu, F.elu, F.relu6, F.softplus),
    *(torch.tanh, torch.sigmoid),
}


@dataclass(frozen=True)
class Norm:
    """A layer and the batch norm that alone reads it, which divides its scale out again.

    (s a - s mean) / sqrt(s² (variance + epsilon)) = (a - mean) / sqrt(variance + epsilon), so the filters, their bias and
    the running mean (`multiplied`) can be multiplied by s, if the running variance goes to s² (variance + epsilon) - epsilon.
    The norm goes on to mean the same in training mode, which it would not if its mean were moved into its bias.
    """

    multiplied: tuple[Axis, ...]
    variance: Axis
    epsilon: float

    def standardise(self, tensors: Tensors) -> Tensors:
        """The tensors [m, *shape] with each channel rescaled so that its variance, epsilon included, is one.

        With v = variance + epsilon, the new variance v / max(v, SMALLEST_VARIANCE) - epsilon is not negative if the old one
        is not.
        """
        variance = tensors[self.variance.tensor] + self.epsilon
        scale = variance.clamp(min=SMALLEST_VARIANCE).rsqrt()
        # variance' + epsilon = s² (variance + epsilon)
        moved = tensors | {self.variance.tensor: scale.square() * variance - self.epsilon}
        return rescale(moved, Rescaling(self.multiplied, ()), scale)


def tensors_of(symmetries: Symmetries) -> set[str]:
    """Names of all tensors that an exchange or a rescaling would change."""
    axes = [axis for group in symmetries.groups for axis in group.axes]
    axes += [axis for rescaling in symmetries.rescalings for axis in rescaling.multiplied + rescaling.divided]
    axes += [axis for norm in symmetries.norms for axis in (*norm.multiplied, norm.variance)]
    return {axis.tensor for axis in axes}


def of_module(module: nn.Module) -> Symmetries:
    """Node by node along the module's graph: layers begin new units, sums tie the units of their summands.

    In evaluation mode, in which a batch norm is an affine map of each channel.

    Raises:
        ValueError: if the module cannot be traced, or has a part whose symmetries are not known here.
    """
    try:
        nodes = fx.symbolic_trace(module).graph.nodes
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"the symmetries of {type(module).__name__} are not known, its graph has no trace: {error}") from None
    derivation = Derivation(module)
    for node in nodes:
        derivation.follow(node)
    return derivation.result()


def keeps_batch_only(node: fx.Node, part: nn.Flatten | None) -> bool:
    """Whether a flattening is that of [b, channels, …] to [b, numbers]."""
    given = (*node.args[1:], *node.kwargs.values()) if part is None else (part.start_dim, part.end_dim)
    return given in ((1,), (1, -1))


@dataclass(frozen=True)
class Signal:
    """What a node of the graph returns: how many units, whether flat, and the labels of their permutation and scale."""

    units: int
    permutation: int
    scale: int
    flat: bool = False


@dataclass
class Derivation:
    """What has been collected along a graph: axes, each with the label of a permutation or a scale."""

    module: nn.Module
    signals: dict[fx.Node, Signal] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)  # of labels, in a union-find forest: tied labels have one root
    fixed: list[int] = field(default_factory=list)  # labels of what must stay as it is
    permuted: list[tuple[int, Axis]] = field(default_factory=list)
    multiplied: list[tuple[int, Axis]] = field(default_factory=list)
    divided: list[tuple[int, Axis]] = field(default_factory=list)
    statistics: list[tuple[int, Norm]] = field(default_factory=list)  # of which only the running mean is known to be multiplied

    def follow(self, node: fx.Node) -> None:
        """Collect what one node adds.

        Raises:
            ValueError: if its symmetries are not known here.
        """
        part = self.module.get_submodule(node.target) if node.op == "call_module" else None
        kind = node.target if part is None else type(part)
        inputs = [self.signals[other] for other in node.all_input_nodes]
        if node.op == "placeholder":
            image = self.signals[node] = Signal(1, self.label(), self.label())
            self.fixed += [image.permutation, image.scale]
        elif node.op == "output":
            self.fixed += [label for signal in inputs for label in (signal.permutation, signal.scale)]
        elif kind in LINEAR | NORMS and any(node.target == other.target for other in self.signals):
            raise ValueError(f"the symmetries of {node.target!r}, which is used twice in a forward pass, are not known here")
        elif kind in LINEAR and getattr(part, "groups", 1) == 1 and inputs[0].flat == (kind is nn.Linear):
            self.signals[node] = self.linear(node.target, part, inputs[0])
        elif kind in NORMS and inputs[0].flat == (kind is not nn.BatchNorm2d):
            self.signals[node] = self.norm(node.target, part, inputs[0])
        elif kind in SUMS and len(inputs) == 2 and len({(signal.units, signal.flat) for signal in inputs}) == 1:
            self.tie(inputs[0].permutation, inputs[1].permutation)
            self.tie(inputs[0].scale, inputs[1].scale)
            self.signals[node] = inputs[0]
        elif kind in HOMOGENEOUS:
            self.signals[node] = inputs[0]
        elif kind in ELEMENTWISE:
            self.signals[node] = inputs[0]
            self.fixed.append(inputs[0].scale)
        elif kind in FLATTENINGS and keeps_batch_only(node, part):
            self.signals[node] = replace(inputs[0], flat=True)
        else:
            raise ValueError(f"the symmetries of {node.name!r}, {part or node.target}, are not known here")

    def linear(self, name: str, part: nn.Module, signal: Signal) -> Signal:
        """Columns belong to the units that are read, rows to new ones."""
        columns = Axis(f"{name}.weight", 1, part.weight.shape[1] // signal.units)
        new = Signal(len(part.weight), self.label(), self.label(), signal.flat)
        rows = [Axis(f"{name}.{tensor}", 0) for tensor in ("weight", "bias") if getattr(part, tensor) is not None]
        self.permuted += [(signal.permutation, columns), *((new.permutation, row) for row in rows)]
        self.divided.append((signal.scale, columns))
        self.multiplied += [(new.scale, row) for row in rows]
        return new

    def norm(self, name: str, part: nn.Module, signal: Signal) -> Signal:
        """The same units with a new scale, that of the norm's weight and bias."""
        new = replace(signal, scale=self.label())
        axes = {
            tensor: Axis(f"{name}.{tensor}", 0, len(values) // signal.units)
            for tensor, values in part.state_dict().items()
            if values.dim()  # not the number of batches seen
        }
        self.permuted += [(signal.permutation, axis) for axis in axes.values()]
        self.multiplied += [(new.scale, axes[tensor]) for tensor in ("weight", "bias") if tensor in axes]
        if "weight" not in axes:
            self.fixed.append(new.scale)
        if "running_var" in axes:
            self.statistics.append((signal.scale, Norm((axes["running_mean"],), axes["running_var"], part.eps)))
        else:
            self.fixed.append(signal.scale)
        return new

    def label(self) -> int:
        """A new label."""
        self.parents.append(len(self.parents))
        return self.parents[-1]

    def root(self, label: int) -> int:
        """The same number for tied labels."""
        while label != self.parents[label]:
            label = self.parents[label]
        return label

    def tie(self, first: int, second: int) -> None:
        """From now on these labels, and all that are tied to them, count as one."""
        self.parents[self.root(second)] = self.root(first)

    def collected(self, pairs: list[tuple[int, Item]]) -> dict[int, tuple[Item, ...]]:
        """What was collected under each root, without what is fixed."""
        fixed, groups = {self.root(label) for label in self.fixed}, {}
        for label, item in pairs:
            if self.root(label) not in fixed:
                groups[self.root(label)] = (*groups.get(self.root(label), ()), item)
        return groups

    def result(self) -> Symmetries:
        """The symmetries of the whole graph."""
        sizes = {signal.permutation: signal.units for signal in self.signals.values()}
        groups = [Group(sizes[label], axes) for label, axes in self.collected(self.permuted).items()]
        into, out, statistics = (self.collected(pairs) for pairs in (self.multiplied, self.divided, self.statistics))
        rescalings = [Rescaling(into[label], out[label]) for label in into if label in out and label not in statistics]
        norms = [
            replace(norm, multiplied=into[label] + norm.multiplied)
            for label, (norm, *others) in statistics.items()
            # this norm, with one variance a unit, is all that reads these units
            if label in into and label not in out and not others and norm.variance.repeat == 1
        ]
        return Symmetries(tuple(groups), tuple(rescalings), tuple(norms))
