"""The frozen part of a network computed once: what does not depend on the weights is a feature of the image.

A zoo often varies a few late tensors of a large network. Everything before them is the same for all of its networks, so
that it need not run again for each: partial evaluation, along the module's graph.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor, fx, nn

from flownlib.extensions.module_checks import close
from flownlib.extensions.modules import ModuleClassifier
from flownlib.scoring import Split, Task
from flownlib.weights import Layout


@dataclass(frozen=True, eq=False)
class SuffixClassifier(ModuleClassifier):
    """The same networks as `whole`, with the same weights, on `features(x)` in place of the images x.

    It trains and evaluates like the whole, and its modules and state dicts are the whole's.
    """

    whole: ModuleClassifier | None = None
    prefix: nn.Module | None = None  # images → tuple of what the suffix reads

    @classmethod
    def of(cls, whole: ModuleClassifier) -> Self:
        """Cut the module where its weights begin.

        Raises:
            ValueError: if its graph cannot be traced or cut; use the whole itself then.
        """
        try:
            graph = fx.symbolic_trace(whole.template).graph
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"{whole.name} cannot be cut, its graph has no trace ({error}); use it whole") from None
        late = _late(graph, whole)
        cut = [node for node in graph.nodes if node not in late and any(user in late for user in node.users)]
        prefix = fx.GraphModule(whole.template, _until(graph, late, cut)).eval()
        with torch.no_grad():
            values, more = (prefix(torch.zeros(n, *whole.image_shape)) for n in (2, 3))
        for node, value, other in zip(cut, values, more, strict=True):
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != 2 or len(other) != 3:
                raise ValueError(f"{whole.name} cannot be cut, {node.name!r} is not a row for each image; use it whole")
        shapes = [tuple(value.shape[1:]) for value in values]
        suffix = fx.GraphModule(whole.template, _from(graph, late, dict(zip(cut, shapes, strict=True))))
        size = sum(map(prod, shapes))
        try:
            classifier = cls(
                f"{whole.name}[suffix]", (size, 1, 1), lambda: suffix, whole.patterns, whole.statistics, whole, prefix
            )
        except ValueError as error:
            raise ValueError(f"{whole.name} cannot be cut, its rest cannot run alone ({error}); use it whole") from error
        classifier._check()
        return classifier

    @torch.no_grad()
    def _check(self) -> None:
        """Cut and whole agree: no tensor is written into on one side of the cut and read on the other."""
        x = torch.randn(3, *self.whole.image_shape, generator=torch.Generator().manual_seed(0))
        weights = self.whole.start()[None]
        if not close(self.forward(weights, self.features(x)), self.whole.forward(weights, x)):
            raise ValueError(f"{self.whole.name} cannot be cut, its parts give other logits than the whole; use it whole")

    @property
    def layout(self) -> Layout:
        """The whole's."""
        return self.whole.layout

    @torch.no_grad()
    def features(self, x: Tensor, chunk: int = 50) -> Tensor:
        """What the frozen part makes of images [n, c, h, w]: [n, d, 1, 1]."""
        prefix = self.prefix if x.device.type == "cpu" else deepcopy(self.prefix).to(x.device)  # which has the whole's tensors
        rows = [torch.cat([part.flatten(1) for part in prefix(images)], dim=1) for images in x.split(chunk)]
        return torch.cat(rows)[:, :, None, None]

    def task(self, task: Task) -> Task:
        """The task with features in place of its images."""
        splits = [Split(self.features(split.x), split.y) for split in (task.train, task.validation, task.test)]
        return Task(task.name, task.num_classes, *splits)

    def module(self) -> nn.Module:
        """A fresh copy of the whole module."""
        return self.whole.module()

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The whole module's state dict with this vector [p] as its weights."""
        return self.whole.state_dict(vector)

    def initialise(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """As the whole does."""
        return self.whole.initialise(n, generator, dtype)


def _late(graph: fx.Graph, whole: ModuleClassifier) -> set[fx.Node]:
    """The nodes whose values depend on the weights, and the output."""
    late, weights = set(), {name for name, first in whole.tied.items() if first in whole.layout.names}
    for node in graph.nodes:
        own = {node.target} if node.op == "get_attr" else set()
        if node.op == "call_module":
            own = {f"{node.target}.{name}" for name in whole.template.get_submodule(node.target).state_dict()}
        if own & weights or node.op == "output" or any(source in late for source in node.all_input_nodes):
            late.add(node)
    return late


def _until(graph: fx.Graph, late: set[fx.Node], cut: list[fx.Node]) -> fx.Graph:
    """The early nodes; returns the values at the cut."""
    early, copies = fx.Graph(), {}
    for node in graph.nodes:
        if node not in late:
            copies[node] = early.node_copy(node, copies.__getitem__)
    early.output(tuple(copies[node] for node in cut))
    return early


def _from(graph: fx.Graph, late: set[fx.Node], shapes: dict[fx.Node, tuple[int, ...]]) -> fx.Graph:
    """The late nodes, fed with the values at the cut, which lie side by side in a row of features [b, d, 1, 1]."""
    rest, start = fx.Graph(), 0
    row, copies = rest.call_method("flatten", (rest.placeholder("features"), 1)), {}
    for node, shape in shapes.items():
        part = rest.call_method("narrow", (row, 1, start, prod(shape)))
        copies[node] = rest.call_method("unflatten", (part, 1, shape)) if shape else part
        start += prod(shape)
    for node in graph.nodes:
        if node in late:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return rest
