"""Few-shot episodes over frozen features: the rivals of a generated head, and their common score.

A method maps Episodes whose images are features (support_x [m, n * shot, d], query_x [m, q, d]) to logits [m, q, n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor, nn

from flownlib.extensions.adaptation import WEIGHT_DECAYS, logistic_head
from flownlib.extensions.caml import SupportEncoder, random_labels
from flownlib.extensions.class_tokens import head_logits, query_loss
from flownlib.extensions.episodes import Episodes, draw_episodes
from flownlib.extensions.head_gauge import centroid_head, class_means
from flownlib.extensions.heads import SHOTS
from flownlib.optimisation import minimise

Method = Callable[[Episodes], Tensor]


def accuracy(logits: Tensor, episodes: Episodes) -> Tensor:
    """Share of each episode's queries that are labelled right: [m], from logits [m, q, n]."""
    return (logits.argmax(-1) == episodes.query_y).float().mean(1)


def fewer(episodes: Episodes, shot: int) -> Episodes:
    """The same episodes with only the first `shot` support images of each class.

    Raises:
        ValueError: if they have fewer.
    """
    support = episodes.support_x.unflatten(1, (episodes.way, -1))
    if support.shape[2] < shot:
        raise ValueError(f"the episodes have {support.shape[2]} support images a class, not {shot}")
    labels = torch.arange(episodes.way, device=support.device).repeat_interleave(shot)
    x, y = episodes.query_x, episodes.query_y
    return Episodes(support[:, :, :shot].flatten(1, 2), labels, x, y, episodes.classes, episodes.names)


def centroid(episodes: Episodes) -> Tensor:
    """Nearest class mean (Snell et al. 2017, without episodic training)."""
    return head_logits(*centroid_head(class_means(episodes.support_x, episodes.way)), episodes.query_x)


def logistic_regression(episodes: Episodes, weight_decay: float) -> Tensor:
    """Multinomial logistic regression on the support."""
    head = logistic_head(episodes.support_x, episodes.support_y, episodes.way, weight_decay)
    return head_logits(*head, episodes.query_x)


def choose_weight_decay(validation: list[Episodes]) -> float:
    """The weight decay of `logistic_regression` with the best mean accuracy on validation episodes of several shots."""

    def score(decay: float) -> float:
        return sum(accuracy(logistic_regression(e, decay), e).mean().item() for e in validation)

    return max(WEIGHT_DECAYS, key=score)


@dataclass(frozen=True)
class PLDA:
    """Probabilistic linear discriminant analysis (Ioffe 2006) in closed form: class mean ~ N(m, B), image ~ N(class mean, W).

    `project` [d, d] makes W the identity and B diagonal, with `between` [d] on its diagonal.
    """

    mean: Tensor
    project: Tensor
    between: Tensor

    @classmethod
    def fit(cls, pool: Tensor, shrink: float = 0.05) -> PLDA:
        """Fit both covariances to a pool of features [classes, k, d]; `shrink` pulls W towards a multiple of the identity."""
        means = pool.mean(1)
        mean, (_, k, d) = means.mean(0), pool.shape
        residual = (pool - means[:, None]).flatten(0, 1)
        within = residual.T @ residual / (len(residual) - len(pool))
        within = (1 - shrink) * within + shrink * within.diagonal().mean() * torch.eye(d).to(within)
        # the scatter of k-image means holds W / k beside B
        between = torch.cov(means.T) - within / k
        values, vectors = scipy.linalg.eigh(between.cpu().double().numpy(), within.cpu().double().numpy())
        return cls(mean, torch.from_numpy(vectors).to(pool), torch.from_numpy(values).to(pool).clamp(min=0))

    def logits(self, episodes: Episodes) -> Tensor:
        """Log predictive density of each query under each class, given its support images."""
        support, query = ((x - self.mean) @ self.project for x in (episodes.support_x, episodes.query_x))
        shot = support.shape[1] // episodes.way
        # class mean | support ~ N(k ψ / (1 + k ψ) x̄, ψ / (1 + k ψ)), and a query adds variance 1
        gain = self.between / (1 + shot * self.between)
        means, variance = shot * gain * class_means(support, episodes.way), gain + 1
        scaled = variance.rsqrt()
        return -0.5 * torch.cdist(query * scaled, means * scaled).square()


class CAML(nn.Module):
    """Context-aware meta-learning (Fifty et al. 2024) on the same features: the transformer itself labels the queries.

    A query enters as [feature, unknown label]; it attends to the support and to itself, so queries do not help each other.
    """

    def __init__(self, dim: int, way: int, width: int = 96) -> None:
        super().__init__()
        self.way = way
        self.encoder = SupportEncoder(dim, way, width, 3)
        self.unknown = nn.Parameter(torch.zeros(way))
        self.leave = nn.Linear(width, way)

    def forward(self, support: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        """Logits [b, q, n]; support [b, n * shot, d] sorted by class, query [b, q, d], label vectors [b, n, n]."""
        (b, k), q = support.shape[:2], query.shape[1]
        known = self.encoder.tokens(support, labels.repeat_interleave(k // self.way, dim=1))
        asked = self.encoder.tokens(query, self.unknown.expand(b, q, -1))
        hidden = torch.ones(k + q, k + q, dtype=torch.bool, device=query.device)
        hidden[:, :k] = False
        hidden.fill_diagonal_(False)
        h = self.encoder.blocks(torch.cat([known, asked], dim=1), mask=hidden)[:, k:]
        return self.leave(h) @ labels.transpose(1, 2)

    @torch.no_grad()
    def logits(self, episodes: Episodes, generator: torch.Generator, deals: int = 5, chunk: int = 50) -> Tensor:
        """Log of the mean probability over `deals` random deals of the label vectors: [m, q, n]."""
        parts = []
        for support, query in zip(episodes.support_x.split(chunk), episodes.query_x.split(chunk), strict=True):
            labels = [random_labels(len(support), self.way, generator).to(support) for _ in range(deals)]
            parts.append(torch.stack([self(support, query, deal).softmax(-1) for deal in labels]).mean(0).log())
        return torch.cat(parts)


def train_caml(model: CAML, pool: Tensor, steps: int, seed: int, episodes: int = 24) -> list[float]:
    """Teach CAML, in place, on random episodes of a pool of features [classes, k, d]: the loss at every step."""
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        shot = SHOTS[int(torch.randint(len(SHOTS), (1,), generator=generator))]
        drawn = draw_episodes(pool, episodes, model.way, shot, 5, generator)
        labels = random_labels(episodes, model.way, generator).to(pool)
        return query_loss(model(drawn.support_x, drawn.query_x, labels), drawn.query_y)

    return minimise(loss, model, steps, 2e-3, "CAML")
