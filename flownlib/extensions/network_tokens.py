"""Whole small networks from a support set: coordinates of a body first, then a head of class tokens on that body.

Two flows, both transformers over the classes of the support (see `class_tokens.py`). The first generates how the body
shall differ from a shared one, as a few coordinates z. The second sees the support's features under the *generated*
body and generates the head, counted from the centroid head of those features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.extensions.class_tokens import ClassTokenVelocity, query_loss, sample_tokens, token_flow_matching_loss
from flownlib.extensions.episodes import draw_episodes
from flownlib.extensions.head_gauge import CentroidPrior, HeadGauge, class_means
from flownlib.networks import Classifier
from flownlib.optimisation import minimise, seeded_module


@dataclass(frozen=True)
class BodyBasis:
    """Bodies as coordinates: body = origin [p_body] + z [r] @ basis [r, p_body], with z of unit deviation over a zoo."""

    origin: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, bodies: Tensor, origin: Tensor, components: int) -> BodyBasis:
        """Principal directions of bodies [t, p_body] about `origin` [p_body]; at most t of them."""
        _, size, directions = torch.linalg.svd(bodies - origin, full_matrices=False)
        size = size[:components] / len(bodies) ** 0.5
        return cls(origin, directions[:components] * size[:, None])

    def coordinates(self, bodies: Tensor) -> Tensor:
        """The coordinates z [t, r] of bodies [t, p_body]; what lies outside the basis is lost."""
        return (bodies - self.origin) @ self.basis.T / self.basis.square().sum(dim=1)


@dataclass(frozen=True)
class PixelBasis:
    """A linear view of images for the context: principal components at half resolution, divided by one common scale.

    mean [c h w], directions [components, c h w].
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, images: Tensor, components: int = 32) -> PixelBasis:
        """From images [i, c, h, w]."""
        halves = F.avg_pool2d(images, 2)
        x = halves.flatten(1) - halves.flatten(1).mean(0)
        _, size, directions = torch.linalg.svd(x, full_matrices=False)
        scale = (size[:components].square().mean() / len(x)).sqrt()
        # averaging 2 × 2 pixels and then projecting is one projection of the whole image
        directions = (directions[:components] / scale).unflatten(1, halves.shape[1:])
        return cls(images.flatten(1).mean(0), F.interpolate(directions / 4, scale_factor=2).flatten(1))

    def __call__(self, images: Tensor) -> Tensor:
        """Images [m, k, c, h, w] → [m, k, components]."""
        return images.flatten(2) @ self.directions.T - self.directions @ self.mean


def class_statistics(values: Tensor, classes: int) -> Tensor:
    """Mean and deviation of each class [m, n, 2 d] from values [m, n * k, d] sorted by class: a context of class tokens."""
    grouped = values.unflatten(1, (classes, -1))
    mean = grouped.mean(2)
    variance = (grouped - mean[:, :, None]).square().mean(2)
    return torch.cat([mean, (variance + 1e-6).sqrt()], dim=-1)


class NetworkFlow(nn.Module):
    """Generates the flat weights of a classifier from a support set sorted by class.

    Args:
        basis: where bodies live. gauge: how heads are written. pixels: the context's view of images. features_std: one
            number, the scale of the body's features. centroid_scale: where the centroid prior starts.
    """

    def __init__(
        self,
        model: Classifier,
        basis: BodyBasis,
        gauge: HeadGauge,
        pixels: PixelBasis,
        features_std: float,
        centroid_scale: float,
    ) -> None:
        super().__init__()
        self.model, self.gauge, self.pixels, self.features_std = model, gauge, pixels, features_std
        # the shared body and its directions learn too, slowly, once queries are at stake
        self.origin, self.basis = nn.Parameter(basis.origin.clone()), nn.Parameter(basis.basis.clone())
        self.prior = CentroidPrior(centroid_scale)
        context = 2 * (len(pixels.directions) + len(gauge.mean))
        self.body_flow = ClassTokenVelocity(len(basis.basis), context, latent=True)
        self.head_flow = ClassTokenVelocity(len(gauge.scale), context)

    def body(self, z: Tensor) -> Tensor:
        """Weights [m, p] with a zero head for body coordinates z [m, r]."""
        return F.pad(self.origin + z @ self.basis, (0, self.model.head_size))

    def features(self, bodies: Tensor, images: Tensor) -> Tensor:
        """Features [m, k, d] of images [m, k, c, h, w] under bodies [m, p]."""
        return self.model.features(bodies, images)

    def look(self, images: Tensor) -> Tensor:
        """What every context says of a support's pixels: [m, n, 2 * components]."""
        return class_statistics(self.pixels(images), self.model.num_classes)

    def context(self, look: Tensor, features: Tensor) -> Tensor:
        """One row a class [m, n, c]: the pixels' statistics, and those of the support's features under some body."""
        standard = (features - self.gauge.mean) / self.features_std
        return torch.cat([look, class_statistics(standard, self.model.num_classes)], dim=-1)

    def base(self, features: Tensor) -> Tensor:
        """The centroid head of support features, as tokens [m, n, d + 1]."""
        return self.prior(class_means(features, self.model.num_classes), self.gauge)

    def shared_body(self, m: int) -> Tensor:
        """The body before the support has had a say, m times: [m, p]."""
        return F.pad(self.origin, (0, self.model.head_size)).expand(m, -1)

    def forward(self, images: Tensor, x_0: tuple[Tensor, Tensor], steps: int = 2) -> Tensor:
        """Weights [m, p] for supports [m, n * k, c, h, w] from noise x_0 (z [m, r], tokens [m, n, d + 1]); differentiable."""
        look, features = self.look(images), self.features(self.shared_body(len(images)), images)
        z = sample_tokens(self.body_flow, x_0[0], self.context(look, features), steps)
        body = self.body(z)
        features = self.features(body, images)
        tokens = sample_tokens(self.head_flow, x_0[1], self.context(look, features), steps, self.base(features))
        rows, bias = self.gauge.from_tokens(tokens)
        return torch.cat([body[:, : -self.model.head_size], rows.flatten(1), bias], dim=1)

    def noise(self, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standard normal x_0 for m networks, drawn on the generator's device."""
        sizes = ((m, len(self.basis)), (m, self.model.num_classes, len(self.gauge.scale)))
        return tuple(torch.randn(size, generator=generator).to(self.origin) for size in sizes)

    def sample(self, images: Tensor, generator: torch.Generator, steps: int = 2) -> Tensor:
        """One network for each support set [m, n * k, c, h, w]: weights [m, p], without gradients."""
        with torch.no_grad():
            return self(images, self.noise(len(images), generator), steps)

    def flow_matching_loss(self, images: Tensor, z_1: Tensor, tokens_1: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching of both flows to trained networks given as z_1 [m, r] and tokens_1 [m, n, d + 1]: a scalar.

        The head flow sees features of the *trained* body (teacher forcing); contexts and base carry no gradient.
        """
        z_0, tokens_0 = self.noise(len(images), generator)
        t = torch.rand(len(images), generator=generator).to(z_1)
        with torch.no_grad():
            look = self.look(images)
            body_context = self.context(look, self.features(self.shared_body(len(images)), images))
            features = self.features(self.body(z_1), images)
            head_context, base = self.context(look, features), self.base(features)
        body_loss = token_flow_matching_loss(self.body_flow, z_0, z_1, t, body_context)
        return body_loss + token_flow_matching_loss(self.head_flow, tokens_0, tokens_1, t, head_context, base)


@torch.no_grad()
def fit_prior(flow: NetworkFlow, zoo: Tensor, zoo_classes: Tensor, pool: Tensor, shot: int, seed: int) -> None:
    """Set the centroid prior's two scales, in place, by least squares to a zoo's heads; arguments as in `fit_flow_matching`."""
    bodies, rows, bias = split_head(flow.model, zoo)
    support = draw_episodes(pool, len(zoo), flow.model.num_classes, shot, 0, torch.Generator().manual_seed(seed), zoo_classes)
    flow.prior.fit(flow.base(flow.features(zoo, support.support_x)), flow.gauge.to_tokens(rows, bias))


def split_head(model: Classifier, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [m, p] → bodies [m, p_body], head rows [m, n, d], head bias [m, n]."""
    tensors = model.layout.unflatten(weights)
    return weights[:, : -model.head_size], *(tensors[name] for name in model.layout.names[-2:])


def network_flow(
    model: Classifier, zoo: Tensor, body: Tensor, images: Tensor, centroid_scale: float, components: int = 32, seed: int = 0
) -> NetworkFlow:
    """An untrained flow whose frame (basis, gauge, scales) is fitted to a zoo.

    Args:
        zoo: weights [t, p] of networks fine-tuned from `body` [1, p]. images: a sample [i, c, h, w] over all classes.
    """
    bodies, rows, bias = split_head(model, zoo)
    with torch.no_grad():
        features = model.features(body, images)[0]
    basis, gauge = BodyBasis.fit(bodies, body[0, : -model.head_size], components), HeadGauge.fit(rows, bias, features)
    frame = basis, gauge, PixelBasis.fit(images), features.std().item()
    return seeded_module(seed, lambda: NetworkFlow(model, *frame, centroid_scale)).to(zoo.device)


def fit_flow_matching(
    flow: NetworkFlow,
    zoo: Tensor,
    zoo_classes: Tensor,
    pool: Tensor,
    steps: int,
    seed: int,
    shot: int = 5,
    batch_size: int = 16,
) -> list[float]:
    """Teach both flows, in place, to imitate the zoo: returns the loss at every step.

    Args:
        zoo: weights [t, p]. zoo_classes: int64 [t, n], the pool's classes behind each network's outputs. pool: images
            [classes, k, c, h, w], of which every step shows the flow `shot` new ones a class, the classes in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    bodies, rows, bias = split_head(flow.model, zoo)
    z, tokens = BodyBasis(flow.origin.detach(), flow.basis.detach()).coordinates(bodies), flow.gauge.to_tokens(rows, bias)
    learners = [*flow.body_flow.parameters(), *flow.head_flow.parameters()]
    way = flow.model.num_classes

    def loss() -> Tensor:
        networks = torch.randint(len(zoo), (batch_size,), generator=generator)
        order = torch.rand(batch_size, way, generator=generator).argsort(dim=1)
        classes = zoo_classes[networks].gather(1, order.to(zoo_classes.device))
        support = draw_episodes(pool, batch_size, way, shot, 0, generator, classes).support_x
        tokens_1 = tokens[networks[:, None], order.to(tokens.device)]
        return flow.flow_matching_loss(support, z[networks], tokens_1, generator)

    return minimise(loss, learners, steps, 1e-3, "flow matching", weight_decay=1e-4)


def fit_queries(
    flow: NetworkFlow, pool: Tensor, steps: int, seed: int, shot: int = 5, queries: int = 5, tasks: int = 16
) -> list[float]:
    """Teach the sampler, in place, to write networks that classify new images of random tasks: the loss at every step.

    Gradients run through the queries' logits, the generated weights and the Euler steps of both flows.
    """
    generator, way = torch.Generator().manual_seed(seed), flow.model.num_classes
    shared = [flow.origin, flow.basis]
    others = [p for p in flow.parameters() if all(p is not q for q in shared)]
    groups = [{"params": shared, "lr": 3e-4}, {"params": others}]

    def loss() -> Tensor:
        drawn = draw_episodes(pool, tasks, way, shot, queries, generator)
        weights = flow(drawn.support_x, flow.noise(tasks, generator))
        return query_loss(flow.model.forward(weights, drawn.query_x), drawn.query_y)

    return minimise(loss, groups, steps, 1e-3, "query loss", weight_decay=0.0)
