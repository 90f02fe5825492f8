"""What many networks do on a set of images: logits, accuracy, loss, errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib import backends, lanes
from flownlib.classifiers import Classifier


@torch.no_grad()
def logits_of(model: Classifier, weights: Tensor, x: Tensor, chunk: int = 50, backend: str = "auto") -> Tensor:
    """Logits [m, n, classes] of m networks on n shared images, by whichever backend is the faster one here."""
    if backends.choose(backend, model, weights.dtype, weights.device.type, len(weights)) == "lanes":
        return lanes.kernel(model, weights.dtype).logits(weights, x.to(weights.dtype))
    # in parts whose activations fit the processor's cache
    groups = weights.split(backends.group_size(model, chunk, weights))
    return torch.cat([torch.cat([model.forward(part, images) for images in x.split(chunk)], dim=1) for part in groups])


@dataclass(frozen=True)
class Scores:
    """What m networks do on one split: accuracy [m], mean cross-entropy in nats [m], which images are wrong, bool [m, n]."""

    accuracy: Tensor
    loss: Tensor
    wrong: Tensor


def score(model: Classifier, weights: Tensor, x: Tensor, y: Tensor, backend: str = "auto") -> Scores:
    """Evaluate m networks [m, p] on images x [n, c, h, w] with labels y [n]."""
    logits = logits_of(model, weights, x, backend=backend)
    wrong = logits.argmax(-1) != y
    loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(weights)), reduction="none").view(len(weights), -1).mean(1)
    return Scores(1 - wrong.float().mean(1), loss, wrong)
