"""What notebook 04 and its study need, built once and cached: images, bodies, a zoo of tasks, the class-token flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flownlib import context as context_module
from flownlib import encoders, symmetry
from flownlib import flow as flow_package
from flownlib import networks as classifiers
from flownlib import networks as operations
from flownlib.chapters import shared as recipes
from flownlib.context import set_mean_context
from flownlib.extensions import adaptation, bodies, class_tokens, episodes, network_tokens
from flownlib.extensions import head_gauge as gauge
from flownlib.extensions.adaptation import (
    adaptation_curve,
    centroid_networks,
    choose_learning_rate,
    choose_weight_decay,
    logistic_networks,
    query_accuracy,
    retrieve_matched,
)
from flownlib.extensions.bodies import PrototypicalBody, TaskZoo, pretrain_body, prototypical_body, train_task_zoo
from flownlib.extensions.episodes import Characters, Episodes, alphabet_episodes, character_pools, draw_episodes, held_out_tasks
from flownlib.extensions.network_tokens import NetworkFlow, fit_flow_matching, fit_prior, fit_queries, network_flow
from flownlib.extensions.reward import reward_fine_tune
from flownlib.harness.cache import cached
from flownlib.harness.settings import Profile
from flownlib.networks import Classifier, cnn_embed, cnn_small
from flownlib.optimisation import seeded
from flownlib.speed import loops, plan
from flownlib.weights import Artifact

SHOT = 5
CODE = (adaptation, bodies, classifiers, operations, episodes, plan, loops, class_tokens, gauge, network_tokens)


@dataclass(frozen=True)
class Data:
    """Training and validation characters, validation episodes (to choose by) and test episodes (to report)."""

    pools: Characters
    validation: Episodes
    test: Episodes


def data(settings: Profile, seed: int) -> Data:
    """Images do not depend on the seed; which of them are support images does."""
    queries = settings.ood_test_images
    pools = character_pools(settings.ood_classes, settings.ood_images, SHOT + queries)
    count = settings.ood_validation_episodes
    validation = draw_episodes(pools.validation, count, 10, SHOT, queries, seeded(seed, 1))
    return Data(pools, validation, alphabet_episodes(held_out_tasks(queries), settings.ood_draws, SHOT, queries, seed))


def _tensors(
    stage: str, settings: Profile, seed: int, build: Callable[[], dict[str, Tensor]], **extra: Any
) -> dict[str, Tensor]:
    chosen = {name: value for name, value in settings.as_dict().items() if name.startswith("ood_")}
    return cached(f"ood-{stage}", {**chosen, **extra, "seed": seed}, lambda: Artifact(build()), code=CODE).tensors


def softmax_body(settings: Profile, seed: int, pool: Tensor) -> Tensor:
    """The body [1, p] after softmax pre-training on the pool's characters."""

    def build() -> dict[str, Tensor]:
        return {"body": pretrain_body(cnn_embed(), pool, settings.ood_body_steps, seed)}

    return _tensors("softmax", settings, seed, build)["body"]


def prototype_body(settings: Profile, seed: int, pool: Tensor, times: int = 1) -> PrototypicalBody:
    """The prototypical body; `times` multiplies its training steps."""

    def build() -> dict[str, Tensor]:
        start = softmax_body(settings, seed, pool)
        body = prototypical_body(cnn_embed(), start, pool, times * settings.ood_prototype_steps, seed)
        return {"body": body.weights, "scale": torch.tensor(body.scale), "losses": torch.tensor(body.losses)}

    stored = _tensors("prototypical", settings, seed, build, times=times)
    return PrototypicalBody(stored["body"], stored["scale"].item(), stored["losses"].tolist())


def task_zoo(settings: Profile, seed: int, pool: Tensor) -> TaskZoo:
    """Networks for random ten-class tasks, fine-tuned from the prototypical body."""

    def build() -> dict[str, Tensor]:
        body = prototype_body(settings, seed, pool).weights
        zoo = train_task_zoo(cnn_embed(), body, pool, settings.ood_tasks, settings.ood_task_epochs, seed)
        return {"weights": zoo.weights, "classes": zoo.classes}

    return TaskZoo(**_tensors("zoo", settings, seed, build))


def new_flow(settings: Profile, seed: int, pool: Tensor) -> NetworkFlow:
    """A class-token flow before training: its frame is the zoo's, its prior the centroid head."""
    zoo, body = task_zoo(settings, seed, pool), prototype_body(settings, seed, pool)
    flow = network_flow(cnn_embed(), zoo.weights, body.weights, pool[:, :5].flatten(0, 1), body.scale, seed=seed)
    fit_prior(flow, zoo.weights, zoo.classes, pool, SHOT, seed)
    return flow


@dataclass(frozen=True)
class TrainedFlow:
    """A trained flow and its loss at every step."""

    flow: NetworkFlow
    losses: list[float]


def imitating_flow(settings: Profile, seed: int, pool: Tensor) -> TrainedFlow:
    """The flow after flow matching to the zoo."""
    flow = new_flow(settings, seed, pool)

    def build() -> dict[str, Tensor]:
        zoo = task_zoo(settings, seed, pool)
        losses = fit_flow_matching(flow, zoo.weights, zoo.classes, pool, settings.ood_flow_steps, seed)
        return {**flow.state_dict(), "losses": torch.tensor(losses)}

    return _restore(flow, _tensors("flow", settings, seed, build))


def queried_flow(settings: Profile, seed: int, pool: Tensor, imitate: bool = True) -> TrainedFlow:
    """The flow after flow matching and then the query loss; without the former it gets its steps in query steps instead."""
    flow = imitating_flow(settings, seed, pool).flow if imitate else new_flow(settings, seed, pool)

    def build() -> dict[str, Tensor]:
        # a flow-matching step costs about a third of a query step
        steps = settings.ood_query_steps + (0 if imitate else settings.ood_flow_steps // 3)
        return {"losses": torch.tensor(fit_queries(flow, pool, steps, seed)), **flow.state_dict()}

    return _restore(flow, _tensors("query", settings, seed, build, imitate=imitate))


def _restore(flow: NetworkFlow, stored: dict[str, Tensor]) -> TrainedFlow:
    losses = stored.pop("losses").tolist()
    flow.load_state_dict(stored)
    return TrainedFlow(flow.requires_grad_(), losses)


Initialise = Callable[[Episodes], Tensor]


def initialisations(settings: Profile, seed: int, found: Data) -> dict[str, Initialise]:
    """Every initialisation of the comparison by name: episodes → weights [m, p]."""
    model, pool = cnn_embed(), found.pools.train
    softmax, body = softmax_body(settings, seed, pool), prototype_body(settings, seed, pool)
    zoo = task_zoo(settings, seed, pool)
    softmax_decay = choose_weight_decay(model, softmax, found.validation)
    body_decay = choose_weight_decay(model, body.weights, found.validation)
    average = zoo.weights.mean(0, keepdim=True)
    return {
        "kaiming": lambda e: model.initialise(len(e), seeded(seed, 2)),
        "zoo_average": lambda e: average.expand(len(e), -1),
        "retrieval_matched": lambda e: retrieve_matched(model, zoo.weights[:100], e),
        "softmax_logistic": lambda e: logistic_networks(model, softmax, e, softmax_decay),
        "prototypical_logistic": lambda e: logistic_networks(model, body.weights, e, body_decay),
        "prototypical_centroid": lambda e: centroid_networks(model, body.weights, e, body.scale),
        "class_tokens_imitating": sampler(imitating_flow(settings, seed, pool).flow, seed),
        "class_tokens": sampler(queried_flow(settings, seed, pool).flow, seed),
    }


def sampler(flow: NetworkFlow, seed: int) -> Initialise:
    """One generated network for each episode's support set."""
    return lambda e: flow.sample(e.support_x, seeded(seed, 3))


def latent_initialisations(settings: Profile, seed: int) -> dict[str, Initialise]:
    """Notebook 03's networks (`cnn_small`) as initialisations: its flow conditioned on the support, and its zoo's nulls."""
    zoo, tasks = recipes.canonical_zoo(settings, seed).train, recipes.zoo_tasks(settings)
    flow = recipes.latent_flow(settings, seed)
    features, model, average = recipes.image_features(tasks), zoo.model, zoo.weights.mean(0, keepdim=True)
    hundred = zoo.weights[torch.randperm(len(zoo), generator=seeded(seed, 4))[:100]]

    def generate(e: Episodes) -> Tensor:
        contexts = [set_mean_context(features.features(x), e.support_y, e.way) for x in e.support_x]
        return torch.cat([flow.sample(1, y, seeded(seed, 5, i)) for i, y in enumerate(contexts)])

    return {
        "kaiming": lambda e: model.initialise(len(e), seeded(seed, 2)),
        "zoo_average": lambda e: average.expand(len(e), -1),
        "retrieval_matched": lambda e: retrieve_matched(model, hundred, e),
        "latent_flow": generate,
    }


@dataclass(frozen=True)
class Curve:
    """Query accuracy [epochs, m] of an initialisation on the test episodes, and the learning rate chosen on validation."""

    accuracy: Tensor
    learning_rate: float


def compare(model: Classifier, methods: dict[str, Initialise], found: Data, seed: int) -> dict[str, Curve]:
    """Fine-tune from every initialisation on the same episodes, each at the learning rate that suited it on validation."""
    curves = {}
    for name, initialise in methods.items():
        rate = choose_learning_rate(model, initialise(found.validation), found.validation)
        curves[name] = Curve(adaptation_curve(model, initialise(found.test), found.test, rate, seed=seed), rate)
    return curves


def _cached_curves(
    stage: str, settings: Profile, seed: int, make: Callable[[], dict[str, Curve]], code: tuple = ()
) -> dict[str, Curve]:
    def build() -> Artifact:
        curves = make()
        rates = {name: curve.learning_rate for name, curve in curves.items()}
        return Artifact({name: curve.accuracy for name, curve in curves.items()}, {"rates": rates})

    stored = cached(f"ood-{stage}", {**settings.as_dict(), "seed": seed}, build, code=(*CODE, *code))
    return {name: Curve(stored.tensors[name], rate) for name, rate in stored.meta["rates"].items()}


def compared(settings: Profile, seed: int, found: Data) -> dict[str, Curve]:
    """`compare` on every one of the `initialisations`."""
    return _cached_curves(
        "compared", settings, seed, lambda: compare(cnn_embed(), initialisations(settings, seed, found), found, seed)
    )


def latent_compared(settings: Profile, seed: int, found: Data) -> dict[str, Curve]:
    """`compare` on every one of the `latent_initialisations`."""
    code = (recipes, *symmetry.CODE, *encoders.CODE, *flow_package.CODE, flows, context_module)
    return _cached_curves(
        "latent", settings, seed, lambda: compare(cnn_small(), latent_initialisations(settings, seed), found, seed), code
    )


def reward_gains(settings: Profile, seed: int, flow: NetworkFlow, found: Data, chosen: list[int]) -> dict[str, Tensor]:
    """Query accuracy [len(chosen)] of networks generated for some test episodes before and after reward fine-tuning.

    "held_out" rewards support images that the flow was not shown, "same" those it was shown.
    """
    accuracies: dict[str, list[Tensor]] = {"before": [], "held_out": [], "same": []}
    for place in chosen:
        one = found.test.at([place])
        support, number = one.support_x[0], 1000 * seed + place
        flows = {
            "before": flow,
            "held_out": reward_fine_tune(flow, support, settings.ood_reward_steps, number),
            "same": reward_fine_tune(flow, support, settings.ood_reward_steps, number, context=None),
        }
        for name, tuned in flows.items():
            accuracies[name].append(query_accuracy(flow.model, sampler(tuned, seed)(one), one))
    return {name: torch.cat(values) for name, values in accuracies.items()}
