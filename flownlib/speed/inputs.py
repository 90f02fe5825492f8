"""What training is given, checked before anything runs: compiled code would follow a wrong number out of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flownlib.weights import check_real, is_finite, whole_numbers

if TYPE_CHECKING:
    from flownlib.networks import Model


def training_inputs(
    model: Model,
    weights: Tensor,
    images: Tensor,
    labels: Tensor,
    orders: Tensor,
    learning_rate: float | Tensor,
    weight_decay: float | Tensor,
    record: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """What `train_many` was given, checked: labels [n] and orders as int64, rate [m] and decay [m], the steps to record.

    Raises:
        ValueError: for weights or images that are not finite or do not fit the model, labels or image numbers out of range,
            other numbers of labels than of images or of orders than of networks, a rate that is not positive, a negative
            decay, or a recorded step that is never reached.
    """
    check_real("initial weights", weights, (model.layout.size,))
    check_real("images", images, tuple(model.image_shape))
    m = len(weights)
    labels = whole_numbers("labels", labels, model.num_classes)
    orders = whole_numbers("the images that minibatches name", orders, len(images)).to(weights.device)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need as many labels, not {tuple(labels.shape)}")
    if orders.dim() != 3 or len(orders) not in (1, m):
        raise ValueError(
            f"{m} networks need {m} minibatch orders, or one that all share, [m, steps, batch], not {list(orders.shape)}"
        )
    rate, decay = (torch.as_tensor(x, dtype=weights.dtype, device=weights.device) for x in (learning_rate, weight_decay))
    if any(x.shape not in ((), (m,)) or not is_finite(x) for x in (rate, decay)) or rate.min() <= 0 or decay.min() < 0:
        raise ValueError(
            f"{m} networks need one learning rate above 0, or {m}, and weight decays of 0 or more, "
            f"not {learning_rate} and {weight_decay}"
        )
    steps, recorded = orders.shape[1], sorted(set(record)) or [orders.shape[1]]
    if recorded[0] < 0 or recorded[-1] > steps:
        raise ValueError(f"steps to record must lie between 0 and {steps}, got {recorded}")
    return labels, orders, rate.expand(m), decay.expand(m), recorded
