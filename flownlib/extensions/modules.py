"""A torch module of one's own as a classifier: slower than the classifiers written for it, with the same interface.

`torch.func` runs one module with many sets of weights (Paszke et al. 2019; functional_call and vmap). A pattern chooses
which parameters are the weights; everything else, buffers included, stays what it was. A module that vmap cannot run runs
network by network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flownlib.extensions.module_checks import check_module, first_line, named_tensors
from flownlib.extensions.traced_symmetry import of_module, tensors_of
from flownlib.optimisation import seeded_module
from flownlib.weights import Layout, Symmetries

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ModuleClassifier:
    """A module whose parameters that match `patterns` are the weights.

    It runs in evaluation mode, in training too: batch normalisation uses its stored statistics, dropout does nothing.
    With `statistics` those stored statistics count as weights too, as whole networks that were trained apart need.
    What the module does with an image must depend on its weights and that image alone; that is tried when it is described.

    Raises:
        ValueError: if the module cannot be built or run, or cannot be a function of its weights; see `flownlib.module_checks`.
    """

    name: str
    image_shape: tuple[int, int, int]
    build: Callable[[], nn.Module]
    patterns: tuple[str, ...] = ("*",)
    statistics: bool = False

    def __post_init__(self) -> None:
        check_module(self)

    @cached_property
    def template(self) -> nn.Module:
        """One module, for its structure and for what is not among the weights."""
        return seeded_module(0, self.build).eval()

    @cached_property
    def tied(self) -> dict[str, str]:
        """Every parameter's and buffer's name → the first name in the layout of the same tensor, or else its first name."""
        groups: dict[int, list[str]] = {}
        for name, tensor in named_tensors(self.template):
            groups.setdefault(id(tensor), []).append(name)
        weights = set(self.layout.names)
        return {name: next((n for n in names if n in weights), names[0]) for names in groups.values() for name in names}

    @cached_property
    def layout(self) -> Layout:
        """The layout of the chosen parameters; tensors that are tied count once.

        Raises:
            ValueError: if none matches.
        """
        matching = Layout.of(self.candidates(self.template), self.patterns).names
        tensors = dict(named_tensors(self.template))
        first = {id(tensors[name]): name for name in reversed(matching)}
        return Layout.of({name: tensors[name] for name in matching if first[id(tensors[name])] == name})

    @cached_property
    def num_classes(self) -> int:
        """Number of logits."""
        with torch.no_grad():
            return self.forward(self.start()[None], torch.zeros(1, *self.image_shape)).shape[-1]

    @cached_property
    def batched(self) -> bool:
        """Whether `torch.vmap` runs the module; otherwise its networks run one after the other, which is exact and slower."""
        weights, x = self.start().repeat(2, 1), torch.zeros(1, *self.image_shape)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._vmapped(weights, x)
        except Exception as error:  # whatever a module may do that vmap does not know
            log.warning("%s runs network by network, which is slower: vmap stops with %r", self.name, first_line(error))
            return False
        return True

    @cached_property
    def symmetries(self) -> Symmetries:
        """Those of the module's graph.

        Raises:
            ValueError: if the module has a part whose symmetries are not known here, or if only a part of the tensors that
                share a permutation are among its weights.
        """
        symmetries = of_module(self.template)
        parts = [name for name in self.template.state_dict() if name in tensors_of(symmetries) - set(self.layout.names)]
        if parts:
            raise ValueError(
                f"units of {self.name} lie along {parts[0]!r} too, which is not among its weights: take all of them, "
                'by patterns=("*",) and statistics=True'
            )
        return symmetries

    @property
    def largest_activation(self) -> int:
        """A guess: thirty-two times the image."""
        channels, height, width = self.image_shape
        return 32 * height * width

    def module(self) -> nn.Module:
        """A fresh copy of the module, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # a build may seed itself, which is not the caller's business
            module = self.build().eval()
        module.load_state_dict(self.template.state_dict())
        return module

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The module's whole state dict with this vector [p] as its weights; loads with strict=True."""
        state = {name: t.detach().clone() if isinstance(t, Tensor) else t for name, t in self.template.state_dict().items()}
        new = self.layout.unflatten(vector)
        return state | {name: new[self.tied[name]].clone() for name in state if self.tied.get(name) in new}

    def initialise(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [n, p]: n modules built anew, or n times the template's where only a part of them are weights.

        Raises:
            ValueError: if `build` gives the same network each time.
        """
        if self.patterns != ("*",):
            return self.start().to(dtype).repeat(n, 1)
        rows = []
        for seed in torch.randint(2**62, (n,), generator=generator).tolist():
            rows.append(self.layout.flatten(dict(named_tensors(seeded_module(seed, self.build)))).detach())
        if all(torch.equal(row.float(), self.start()) for row in rows):
            sentence = f"{self.name} is the same network each time it is built: let `build` set no seed and load nothing"
            if n > 1:
                raise ValueError(f"{sentence}, or start all from one network, by initialise(1, …).repeat(n, 1)")
            log.warning("%s, unless all networks shall start from this one", sentence)
        return torch.stack(rows).to(dtype)

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """Logits [m, b, classes] of m networks [m, p] on images [b, c, h, w], or on each one's own [m, b, c, h, w]."""
        if self.batched:
            return self._vmapped(weights, x)
        images = [x] * len(weights) if x.dim() == 4 else x
        return torch.stack([self._called(self._rest(weights), *pair) for pair in zip(weights, images, strict=True)])

    def _vmapped(self, weights: Tensor, x: Tensor) -> Tensor:
        rest = self._rest(weights)
        with warnings.catch_warnings():  # torch says so where it runs an operation network by network
            warnings.filterwarnings("ignore", "There is a performance drop")
            in_dims = (0, None if x.dim() == 4 else 0)
            return vmap(lambda vector, images: self._called(rest, vector, images), in_dims)(weights, x)

    def _rest(self, weights: Tensor) -> dict[str, Tensor]:
        """What is not among the weights, in their precision and where they are; one name for each tensor."""
        rest = {name: t.detach() for name, t in named_tensors(self.template) if self.tied[name] == name}
        return {name: t.to(weights) if t.is_floating_point() else t.to(weights.device) for name, t in rest.items()}

    def _called(self, rest: dict[str, Tensor], vector: Tensor, images: Tensor) -> Tensor:
        """The template with one network's weights; what it notes down in itself meanwhile is forgotten."""
        parts = list(self.template.modules())
        before = [dict(vars(part)) for part in parts]
        try:
            return functional_call(self.template, rest | self.layout.unflatten(vector), (images,))
        finally:
            for part, attributes in zip(parts, before, strict=True):
                vars(part).clear()
                vars(part).update(attributes)

    def start(self) -> Tensor:
        """The template's own weights, float32 [p]."""
        return self.layout.flatten(dict(named_tensors(self.template))).detach().float()

    def candidates(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a module that can be weights."""
        if self.statistics:
            saved = module.state_dict().keys()
            return {name: tensor for name, tensor in named_tensors(module) if name in saved}
        return dict(module.named_parameters(remove_duplicate=False))
