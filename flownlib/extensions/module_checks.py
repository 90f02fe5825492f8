"""Whether a module can be a function of its weights: tried on a few images of noise when it is described."""

from __future__ import annotations

import fnmatch
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from flownlib.extensions.modules import ModuleClassifier


def check_module(model: ModuleClassifier) -> None:
    """Refuse what cannot be run, or would be silently wrong.

    Raises:
        ValueError: one sentence with the reason and a way out.
    """
    if isinstance(model.patterns, str) or len(model.image_shape) != 3:
        raise ValueError(f'{model.name} needs patterns as in ("head.*",) and images as in (channels, height, width)')
    try:
        model.template.state_dict()
    except Exception as error:  # the build is the caller's code
        raise ValueError(f"{model.name} cannot be built: {first_line(error)}") from error
    _check_tensors(model)
    _check_function(model)


def _check_tensors(model: ModuleClassifier) -> None:
    """The module's own tensors hold numbers, and its weights are among those that it saves."""
    for name, tensor in named_tensors(model.template):
        if reason := unusable(tensor):
            raise ValueError(f"{model.name} cannot be used: its {name!r} {reason}")
    for name, tensor in model.candidates(model.template).items():
        if tensor.is_complex() and any(fnmatch.fnmatchcase(name, pattern) for pattern in model.patterns):
            raise ValueError(
                f"{model.name} has a complex parameter, {name!r}: choose the real ones by patterns, or let it store the real "
                "and the imaginary part"
            )
    if lost := sorted(set(model.layout.names) - set(model.template.state_dict())):
        raise ValueError(f"{model.name} saves {lost[0]!r} under another name or not at all, so that no file could be loaded")


def _check_function(model: ModuleClassifier) -> None:
    """Logits follow from weights and image: not from chance, the rest of the batch, or anything else."""
    name, shape = model.name, " × ".join(map(str, model.image_shape))
    dtype = next((t.dtype for _, t in named_tensors(model.template) if t.is_floating_point()), torch.float32)
    x = torch.randn(3, *model.image_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    images = x.clone()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            three, two = model.template(images), model.template(images[:2])
            again = two if _same_rows(three, two) else model.template(images[:2])
    except Exception as error:  # whatever a module may raise
        raise ValueError(f"{name} cannot run on images {shape}: {first_line(error)}") from error
    if not isinstance(three, Tensor) or three.dim() != 2 or len(three) != 3 or not three.is_floating_point():
        kind = f"a tensor {' × '.join(map(str, three.shape))}" if isinstance(three, Tensor) else type(three).__name__
        raise ValueError(f"{name} returns {kind} for 3 images: wrap it in a module that returns logits, 3 × classes")
    if not torch.equal(x, images):
        raise ValueError(f"{name} writes into the images it is given: let its first step copy them, by x.clone()")
    if not close(two, again):
        raise ValueError(
            f"{name} gives other logits each time, in evaluation mode too: let dropout ask for training=self.training"
        )
    if not _same_rows(three, two):
        raise ValueError(
            f"{name} lets an image's logits depend on the other images of a batch: give its batch norms running statistics, or "
            "use another normalisation"
        )
    with torch.no_grad():
        handed = model.forward(model.start().repeat(2, 1), x[:1].float())
    if not close(handed[1], two[:1]):
        raise ValueError(
            f"{name} gives other logits when its weights are handed to it: let its forward use its registered parameters, and "
            "nothing computed from them before"
        )


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers under all of their names, in a state dict's order."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    saved = [name for name in module.state_dict() if name in tensors]
    return [(name, tensors[name]) for name in dict.fromkeys([*saved, *tensors])]


def unusable(tensor: Tensor) -> str:
    """Why a tensor cannot be read as plain numbers, as the end of a sentence; empty if it can."""
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return "has no size yet: run the module once on an image inside `build`"
    if tensor.device.type == "meta":
        return "is on the meta device and holds no numbers: build or save it with its data"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}): dequantise it first, by .dequantize()"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is sparse or nested ({tensor.layout}): make it dense first, by .to_dense()"
    return ""


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return a.shape == b.shape and (a.numel() == 0 or bool((a - b).abs().max() <= 1e-3 * (1e-6 + b.abs().max())))


def _same_rows(three: object, two: object) -> bool:
    """Whether two of three images have the logits that they have without the third."""
    return isinstance(three, Tensor) and isinstance(two, Tensor) and close(three[:2], two)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
