"""A body that few-shot methods share, and a zoo of networks fine-tuned from it.

The body is pre-trained on many classes at once and then taught, episode by episode, to put images of a class close
together. A body is kept as the flat weights [1, p] of a whole classifier whose head is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from flownlib.extensions.adaptation import fine_tune
from flownlib.extensions.class_tokens import head_logits, query_loss
from flownlib.extensions.episodes import draw_episodes
from flownlib.extensions.head_gauge import centroid_head, class_means
from flownlib.networks import Classifier
from flownlib.optimisation import minimise


def without_head(model: Classifier, weights: Tensor) -> Tensor:
    """The same weights [m, p] with zeros for a head."""
    return torch.cat([weights[:, : -model.head_size], torch.zeros_like(weights[:, -model.head_size :])], dim=1)


def pretrain_body(model: Classifier, pool: Tensor, steps: int, seed: int) -> Tensor:
    """A body trained to tell all classes of a pool apart through one large softmax head, which is then thrown away.

    Args:
        pool: images [classes, k, c, h, w].

    Returns:
        The body [1, p].
    """
    generator = torch.Generator().manual_seed(seed)
    body = model.initialise(1, generator).to(pool.device).requires_grad_()
    classes, per_class = pool.shape[:2]
    head = nn.Parameter(0.1 * torch.randn(classes, model.layers[-1].in_features, generator=generator).to(pool.device))
    bias, images = nn.Parameter(torch.zeros(classes, device=pool.device)), pool.flatten(0, 1)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (256,), generator=generator).to(pool.device)
        return F.cross_entropy(F.linear(model.features(body, images[rows])[0], head, bias), rows // per_class)

    minimise(loss, [body, head, bias], steps, 5e-3, "softmax body", clip=math.inf)
    return without_head(model, body.detach())


@dataclass(frozen=True)
class PrototypicalBody:
    """A body [1, p], the temperature s of its centroid head, and the loss at every step of its training."""

    weights: Tensor
    scale: float
    losses: list[float]


def prototypical_body(model: Classifier, body: Tensor, pool: Tensor, steps: int, seed: int) -> PrototypicalBody:
    """Fine-tune a body so that the nearest centroid of the support is the right class (Snell et al. 2017)."""
    generator, way, shot, episodes = torch.Generator().manual_seed(seed), model.num_classes, 5, 16
    body = body.clone().requires_grad_()
    log_scale = torch.tensor(-3.0, device=body.device, requires_grad=True)

    def loss() -> Tensor:
        drawn = draw_episodes(pool, episodes, way, shot, 5, generator)
        images = torch.cat([drawn.support_x, drawn.query_x], dim=1)
        # the body repeated for each episode: the same numbers, and faster than one long batch
        features = model.features(body.expand(episodes, -1), images)
        means = class_means(features[:, : way * shot], way)
        return query_loss(head_logits(*centroid_head(means, log_scale.exp()), features[:, way * shot :]), drawn.query_y)

    losses = minimise(loss, [body, log_scale], steps, 2e-3, "prototypical body", weight_decay=0.0, clip=math.inf)
    return PrototypicalBody(without_head(model, body.detach()), log_scale.exp().item(), losses)


@dataclass(frozen=True)
class TaskZoo:
    """Networks [t, p] trained on random tasks, and the pool's classes [t, n] that each one's outputs stand for."""

    weights: Tensor
    classes: Tensor


def train_task_zoo(
    model: Classifier, body: Tensor, pool: Tensor, tasks: int, epochs: int, seed: int, group: int = 24
) -> TaskZoo:
    """Networks for random tasks from a pool, each started from the body [1, p] with a zero head and trained on all its images.

    Two thirds of the epochs run at learning rate 3e-3, the rest at 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.rand(tasks, len(pool), generator=generator).argsort(dim=1)[:, : model.num_classes]
    labels = torch.arange(model.num_classes, device=pool.device).repeat_interleave(pool.shape[1])
    first, trained = max(1, round(epochs * 2 / 3)), []
    for part, task_classes in enumerate(tqdm(classes.split(group), desc="zoo of tasks", leave=False, disable=None)):
        images = pool[task_classes].flatten(1, 2)
        weights = body.expand(len(task_classes), -1)
        for rate, length in ((3e-3, first), (1e-3, epochs - first)):
            weights = fine_tune(model, weights, images, labels, rate, (length,), seed=1000 * seed + part, batch_size=50)[-1]
        trained.append(weights)
    return TaskZoo(torch.cat(trained), classes)
