"""Any torch module as a classifier: slower than the classifiers written for it, with the same interface.

`torch.func` runs one module with many sets of weights (Paszke et al. 2019; functional_call and vmap). A pattern chooses
which parameters are the weights; everything else, buffers included, stays what it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flownlib.extensions.traced_symmetry import of_module
from flownlib.weights import Layout, Symmetries

NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
VISION = {"resnet18": "fc", "vit_b_16": "heads", "convnext_tiny": "classifier.2"}  # torchvision's name → its head


@dataclass(frozen=True, eq=False)
class ModuleClassifier:
    """A module whose parameters that match `patterns` are the weights.

    It runs in evaluation mode, in training too: batch normalisation uses its stored statistics, dropout does nothing.
    With `statistics` those stored statistics count as weights too, as whole networks that were trained apart need.
    """

    name: str
    image_shape: tuple[int, int, int]
    build: Callable[[], nn.Module]
    patterns: tuple[str, ...] = ("*",)
    statistics: bool = False

    @cached_property
    def template(self) -> nn.Module:
        """One module, for its structure and for what is not among the weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()

    @cached_property
    def layout(self) -> Layout:
        """The layout of the chosen parameters.

        Raises:
            ValueError: if none matches.
        """
        return Layout.of(self._candidates(self.template), self.patterns)

    @cached_property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.forward(self.layout.join(self._candidates(self.template))[None], torch.zeros(2, *self.image_shape)).shape[
            -1
        ]

    @cached_property
    def symmetries(self) -> Symmetries:
        """Those of the module's graph.

        Raises:
            ValueError: if the module has a part whose symmetries are not known here, or if only a part of the tensors that
                share a permutation are among its weights.
        """
        symmetries = of_module(self.template)
        parts = [name for name in self.template.state_dict() if name in symmetries.tensors - set(self.layout.names)]
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
        module = self.build().eval()
        module.load_state_dict(self.template.state_dict())
        return module

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The module's whole state dict with this vector [p] as its weights; loads with strict=True."""
        state = {name: tensor.clone() for name, tensor in self.template.state_dict().items()}
        return state | self.layout.state_dict(vector)

    def initialise(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [n, p]: n modules built anew, or n times the template's where only a part of them are weights."""
        if self.patterns != ("*",):
            return self.layout.join(self._candidates(self.template)).to(dtype).repeat(n, 1)
        rows = []
        for seed in torch.randint(2**62, (n,), generator=generator).tolist():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                rows.append(self.layout.join(self._candidates(self.build())))
        return torch.stack(rows).to(dtype)

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """Logits [m, b, classes] of m networks [m, p] on images [b, c, h, w], or on each one's own [m, b, c, h, w]."""
        rest = {name: tensor.detach() for name, tensor in self.template.state_dict().items()}
        rest = {name: t.to(weights) if t.is_floating_point() else t.to(weights.device) for name, t in rest.items()}

        def one(vector: Tensor, images: Tensor) -> Tensor:
            return functional_call(self.template, rest | self.layout.views(vector), (images,))

        with warnings.catch_warnings():  # torch says so where it runs an operation network by network
            warnings.filterwarnings("ignore", "There is a performance drop")
            return vmap(one, in_dims=(0, None if x.dim() == 4 else 0))(weights, x)

    def _candidates(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a module that can be weights."""
        if self.statistics:
            return module.state_dict()
        return {name: tensor.detach() for name, tensor in module.named_parameters()}


def torchvision_classifier(
    name: str,
    subset: str = "norms",
    num_classes: int = 10,
    image_size: int = 64,
    pretrained: bool = False,
    seed: int = 0,
) -> ModuleClassifier:
    """A torchvision network of which only the normalisation layers, the head, or both are weights.

    Args:
        name: one of VISION. subset: "norms", "head", "norms+head" or "all". pretrained: download ImageNet weights;
            otherwise the frozen part is drawn with `seed`, and nothing is downloaded.

    Raises:
        ValueError: for an unknown network or subset, or a vision transformer with images that are not 224 wide.
    """
    if name not in VISION:
        raise ValueError(f"there is no torchvision classifier {name!r} here; choose one of {', '.join(VISION)}")
    if name == "vit_b_16" and image_size != 224:
        raise ValueError(f"vit_b_16 takes images 224 wide, not {image_size}")
    import torchvision  # here, for importing it takes seconds

    head = VISION[name]

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            if subset != "all":  # otherwise every seed of a zoo shall have its own
                torch.manual_seed(seed)
            module = getattr(torchvision.models, name)(weights="DEFAULT" if pretrained else None)
            parent, _, last = head.rpartition(".")
            owner = module.get_submodule(parent)
            old = owner[int(last)] if last.isdigit() else getattr(owner, last)
            features = (old if isinstance(old, nn.Linear) else old[-1]).in_features
            owner.register_module(last, nn.Linear(features, num_classes))
        return module

    norms = [f"{path}.*" for path, part in build().named_modules() if isinstance(part, NORMALISATION)]
    subsets = {"norms": norms, "head": [f"{head}.*"], "norms+head": [*norms, f"{head}.*"], "all": ["*"]}
    if subset not in subsets:
        raise ValueError(f"there is no subset {subset!r}; choose one of {', '.join(subsets)}")
    return ModuleClassifier(f"{name}[{subset}]", (3, image_size, image_size), build, tuple(subsets[subset]))
