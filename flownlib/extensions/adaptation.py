"""From an initialisation to a network for fifty labelled images: fine-tuning many networks at once, and where they start."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flownlib.extensions.episodes import Episodes
from flownlib.extensions.head_gauge import centroid_head, class_means
from flownlib.networks import Classifier
from flownlib.optimisation import minimise
from flownlib.scoring import Split
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders

EPOCHS = (0, 1, 2, 5, 10, 25)
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)


def fine_tune(
    model: Classifier,
    weights: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    learning_rate: float,
    epochs: Sequence[int] = EPOCHS,
    seed: int = 0,
    batch_size: int = 10,
) -> Tensor:
    """Fine-tune m networks at once, each on its own images, with Adam.

    Args:
        weights: initial [m, p]. support_x: [m, k, c, h, w]. support_y: [k] or [m, k]. epochs: increasing; 0 is the start.

    Returns:
        Weights [len(epochs), m, p] after each of the epochs.

    Raises:
        ValueError: if the epochs do not increase from 0 or above, or the support and the networks are not equally many.
    """
    m, k = support_x.shape[:2]
    if list(epochs) != sorted(set(epochs)) or not epochs or epochs[0] < 0:
        raise ValueError(f"epochs must increase and none be negative, got {tuple(epochs)}")
    if len(weights) != m:
        raise ValueError(f"each network needs a support set of its own, got {len(weights)} networks and {m} supports")
    checkpoints = [weights[None]] if epochs[0] == 0 else []
    if epochs[-1] > 0:
        training = Training(epochs[-1], batch_size, learning_rate)
        # one long list of images; network i takes its minibatches from the i-th part
        data = Split(support_x.flatten(0, 1), support_y.expand(m, k).flatten())
        orders = minibatch_orders([1000 * seed + i for i in range(m)], k, training).to(weights.device)
        orders = orders + k * torch.arange(m, device=weights.device)[:, None, None]
        record = [training.steps(k) // epochs[-1] * epoch for epoch in epochs if epoch]
        checkpoints.append(train_many(model, weights, data, orders, learning_rate, record))
    return torch.cat(checkpoints)


@torch.no_grad()
def query_accuracy(model: Classifier, weights: Tensor, episodes: Episodes) -> Tensor:
    """Share of each episode's queries that its network gets right: [m], for weights [m, p]."""
    parts = zip(weights.split(8), episodes.query_x.split(8), strict=True)
    right = [model.forward(w, x).argmax(-1) == episodes.query_y for w, x in parts]
    return torch.cat(right).float().mean(1)


def adaptation_curve(model: Classifier, weights: Tensor, episodes: Episodes, learning_rate: float, seed: int = 0) -> Tensor:
    """Query accuracy [len(EPOCHS), m] while the initial weights [m, p] are fine-tuned on the episodes' support."""
    checkpoints = fine_tune(model, weights, episodes.support_x, episodes.support_y, learning_rate, seed=seed)
    return torch.stack([query_accuracy(model, after, episodes) for after in checkpoints])


def choose_learning_rate(model: Classifier, weights: Tensor, validation: Episodes) -> float:
    """The rate with the best mean query accuracy over epochs 1–25 of the validation episodes."""
    return max(LEARNING_RATES, key=lambda rate: adaptation_curve(model, weights, validation, rate)[1:].mean().item())


def with_head(model: Classifier, body: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """Weights [m, p] whose head is (rows [m, n, d], bias [m, n]) and whose body is that of `body` [1 or m, p]."""
    return torch.cat([body[:, : -model.head_size].expand(len(rows), -1), rows.flatten(1), bias], dim=1)


@torch.no_grad()
def support_features(model: Classifier, body: Tensor, episodes: Episodes) -> Tensor:
    """Features [m, k, d] of the support under one body [1, p]."""
    return model.features(body, episodes.support_x.flatten(0, 1))[0].unflatten(0, (len(episodes), -1))


def centroid_networks(model: Classifier, body: Tensor, episodes: Episodes, scale: float) -> Tensor:
    """Networks [m, p] that decide by the nearest class mean of the support (Snell et al. 2017)."""
    return with_head(model, body, *centroid_head(class_means(support_features(model, body, episodes), episodes.way), scale))


def logistic_head(
    features: Tensor, labels: Tensor, classes: int, weight_decay: float, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regressions on features [m, k, d]: rows [m, classes, d] and bias [m, classes].

    Args:
        labels: [k]. weight_decay: of the squared rows, on standardised features, per image.
    """
    mean = features.mean(1, keepdim=True)
    std = (features - mean).square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-6
    x = (features - mean) / std
    rows = torch.zeros(len(x), classes, x.shape[-1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(len(x), classes, dtype=x.dtype, device=x.device, requires_grad=True)

    def loss() -> Tensor:
        logits = torch.baddbmm(bias[:, None], x, rows.transpose(1, 2))
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(x)), reduction="sum") / len(labels)
        return cross_entropy + weight_decay * rows.square().sum()

    minimise(loss, [rows, bias], steps, 0.03, "logistic regression", weight_decay=0.0, clip=math.inf, constant=True)
    unscaled = (rows / std).detach()
    return unscaled, bias.detach() - (unscaled @ mean.transpose(1, 2))[..., 0]


def logistic_networks(model: Classifier, body: Tensor, episodes: Episodes, weight_decay: float) -> Tensor:
    """Networks [m, p] with a logistic-regression head on the body's support features."""
    features = support_features(model, body, episodes)
    return with_head(model, body, *logistic_head(features, episodes.support_y, episodes.way, weight_decay))


def choose_weight_decay(model: Classifier, body: Tensor, validation: Episodes) -> float:
    """The weight decay with the best query accuracy on the validation episodes."""
    return max(
        WEIGHT_DECAYS,
        key=lambda decay: query_accuracy(model, logistic_networks(model, body, validation, decay), validation).mean().item(),
    )


@torch.no_grad()
def retrieve_matched(model: Classifier, zoo: Tensor, episodes: Episodes) -> Tensor:
    """For each episode the zoo network with the least support loss once its outputs are matched to the classes: [m, p].

    A zoo network was trained on other classes, so which of its outputs shall stand for which class is an assignment
    problem (Hungarian algorithm on mean log-probabilities); the head's rows are reordered accordingly.
    """
    networks = []
    for support in episodes.support_x:
        log_p = model.forward(zoo, support).log_softmax(-1)  # [zoo, k, outputs]
        cost = -class_means(log_p, episodes.way)  # [zoo, class, output]
        orders = [linear_sum_assignment(matrix.cpu().numpy())[1] for matrix in cost]
        totals = torch.stack(
            [matrix[torch.arange(len(o)), torch.as_tensor(o)].sum() for matrix, o in zip(cost, orders, strict=True)]
        )
        best = int(totals.argmin())
        networks.append(reorder_head(model, zoo[best : best + 1], torch.as_tensor(orders[best])))
    return torch.cat(networks)


def reorder_head(model: Classifier, weights: Tensor, order: Tensor) -> Tensor:
    """Weights [m, p] whose output i is the old output order[i]."""
    tensors = dict(model.layout.unflatten(weights))
    for name in model.layout.names[-2:]:
        tensors[name] = tensors[name][:, order]
    return model.layout.flatten(tensors)
