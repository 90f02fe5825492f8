"""What is classified, labelled images in three splits, and what many networks do on it: logits, accuracy, loss, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.networks import Model
from flownlib.weights import Bool, Float, Images, Int, Labels, Weights, check_real, whole_numbers

# (model, weights, images, backend) → logits, or None where this way does not serve; `flownlib.speed` adds its own
_FastLogits = Callable[[Model, Tensor, Tensor, str], Tensor | None]
FAST_LOGITS: list[_FastLogits] = []


@dataclass(frozen=True)
class Split:
    """Images x float32 [n, c, h, w] and labels y int64 [n]; other whole numbers become int64.

    Raises:
        ValueError: for images that are not finite, labels that are not whole numbers from 0, or none for some image.
    """

    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        check_real("images", self.x, self.x.shape[1:] if isinstance(self.x, Tensor) else ())
        object.__setattr__(self, "y", whole_numbers("labels", self.y))
        if self.y.shape != self.x.shape[:1]:
            raise ValueError(f"{len(self.x)} images need as many labels, not {tuple(self.y.shape)}")

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Task:
    """A named classification problem. No image appears in two splits.

    Raises:
        ValueError: for labels that are not among the classes, or splits whose images differ in shape.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for split in (self.train, self.validation, self.test):
            whole_numbers(f"labels of task {self.name!r}", split.y, self.num_classes)
            if split.x.shape[1:] != self.train.x.shape[1:]:
                raise ValueError(
                    f"images of task {self.name!r} have shapes {tuple(self.train.x.shape[1:])} and {tuple(split.x.shape[1:])}"
                )

    def support(self, per_class: int, generator: torch.Generator) -> Split:
        """A random support set drawn from the training split, `per_class` >= 1 images a class, sorted by class.

        Raises:
            ValueError: if a class has fewer images.
        """
        rows = []
        for label in range(self.num_classes):
            places = (self.train.y == label).nonzero()[:, 0]
            if len(places) < per_class:
                raise ValueError(f"class {label} of task {self.name!r} has {len(places)} training images, not {per_class}")
            rows.append(places[torch.randperm(len(places), generator=generator)[:per_class]])
        index = torch.cat(rows)
        return Split(self.train.x[index], self.train.y[index])

    def to(self, device: torch.device | str) -> Task:
        """The same task on another device."""
        return Task(self.name, self.num_classes, *(split.to(device) for split in (self.train, self.validation, self.test)))


@torch.no_grad()
def logits_of(
    model: Model, weights: Weights, x: Images, backend: str = "auto", allow_diverged: bool = False
) -> Float[Tensor, "n b classes"]:
    """Logits [n, b, classes] of n networks [n, p] on b shared images, by whichever backend is the faster one here.

    Args:
        model: of all the networks.
        weights: [n, p].
        x: [b, c, h, w].
        backend: "auto", or the name of one.
        allow_diverged: take networks whose weights are not finite; what they say may be NaN.

    Raises:
        ValueError: for weights or images of another shape than the model's, none of them, or some that are not finite.
    """
    check_real("networks", weights, (model.layout.size,), finite=not allow_diverged)
    check_real("images", x, tuple(model.image_shape))
    for fast_logits in FAST_LOGITS:
        logits = fast_logits(model, weights, x, backend)
        if logits is not None:
            return logits
    return torch.cat([model.forward(weights, images) for images in x.split(50)], dim=1)


@dataclass(frozen=True)
class Scores:
    """What n networks do on one split: accuracy in [0, 1], mean cross-entropy in nats, and which images are wrong."""

    accuracy: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]
    wrong: Bool[Tensor, "n b"]


def score(model: Model, weights: Weights, x: Images, y: Labels, backend: str = "auto", allow_diverged: bool = False) -> Scores:
    """Accuracy, loss and errors of n networks on b labelled images.

    Args:
        model: of all the networks.
        weights: [n, p].
        x: [b, c, h, w].
        y: labels int64 [b] in 0, …, classes - 1.
        backend: as for `logits_of`.
        allow_diverged: score networks whose weights are not finite too, as a guess; mark them, for nothing here does.

    Raises:
        ValueError: as `logits_of`, and for labels that are not whole numbers among the classes, one an image.
    """
    y = whole_numbers("labels", y, model.num_classes)
    if y.shape != x.shape[:1]:
        raise ValueError(f"{len(x)} images need as many labels, not {tuple(y.shape)}")
    logits = logits_of(model, weights, x, backend=backend, allow_diverged=allow_diverged)
    wrong = logits.argmax(-1) != y
    loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(weights)), reduction="none").view(len(weights), -1).mean(1)
    return Scores(1 - wrong.float().mean(1), loss, wrong)
