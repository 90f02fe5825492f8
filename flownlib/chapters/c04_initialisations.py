"""What notebook 04 and its study need, built once and cached: images, bodies, a zoo of tasks, the class-token flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flownlib.chapters import shared
from flownlib.context import set_mean_context
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
from flownlib.harness.devices import device_of
from flownlib.harness.memo import memo, tensors
from flownlib.harness.profiles import Profile
from flownlib.networks import Classifier, cnn_embed, cnn_small
from flownlib.optimisation import seeded
from flownlib.weights import Artifact

SHOT = 5


@dataclass(frozen=True)
class Data:
    """Training and validation characters, validation episodes (to choose by) and test episodes (to report)."""

    pools: Characters
    validation: Episodes
    test: Episodes


def data(settings: Profile, seed: int) -> Data:
    """Images do not depend on the seed; which of them are support images does."""
    queries = settings.ood_test_images
    device = device_of(settings)
    pools = character_pools(settings.ood_classes, settings.ood_images, SHOT + queries, device)
    count = settings.ood_validation_episodes
    validation = draw_episodes(pools.validation, count, 10, SHOT, queries, seeded(seed, 1))
    tasks = [task.to(device) for task in held_out_tasks(queries)]
    return Data(pools, validation, alphabet_episodes(tasks, settings.ood_draws, SHOT, queries, seed))


@memo(lambda stored: stored.tensors["body"])
def softmax_body(settings: Profile, seed: int, pool: Tensor) -> dict[str, Tensor]:
    """The body [1, p] after softmax pre-training on the pool's characters."""
    return {"body": pretrain_body(cnn_embed(), pool, settings.ood_body_steps, seed)}


def _prototypical(stored: Artifact) -> PrototypicalBody:
    return PrototypicalBody(stored.tensors["body"], stored.tensors["scale"].item(), stored.tensors["losses"].tolist())


@memo(_prototypical)
def prototype_body(settings: Profile, seed: int, pool: Tensor, times: int = 1) -> dict[str, Tensor]:
    """The prototypical body; `times` multiplies its training steps."""
    start = softmax_body(settings, seed, pool)
    body = prototypical_body(cnn_embed(), start, pool, times * settings.ood_prototype_steps, seed)
    return {"body": body.weights, "scale": torch.tensor(body.scale), "losses": torch.tensor(body.losses)}


@memo(lambda stored: TaskZoo(**stored.tensors))
def task_zoo(settings: Profile, seed: int, pool: Tensor) -> dict[str, Tensor]:
    """Networks for random ten-class tasks, fine-tuned from the prototypical body: a `TaskZoo`."""
    body = prototype_body(settings, seed, pool).weights
    zoo = train_task_zoo(cnn_embed(), body, pool, settings.ood_tasks, settings.ood_task_epochs, seed)
    return {"weights": zoo.weights, "classes": zoo.classes}


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


@memo(tensors)
def _imitating(settings: Profile, seed: int, pool: Tensor) -> dict[str, Tensor]:
    flow, zoo = new_flow(settings, seed, pool), task_zoo(settings, seed, pool)
    losses = fit_flow_matching(flow, zoo.weights, zoo.classes, pool, settings.ood_flow_steps, seed)
    return {**flow.state_dict(), "losses": torch.tensor(losses)}


def imitating_flow(settings: Profile, seed: int, pool: Tensor) -> TrainedFlow:
    """The flow after flow matching to the zoo."""
    return _restored(new_flow(settings, seed, pool), _imitating(settings, seed, pool))


@memo(tensors)
def _queried(settings: Profile, seed: int, pool: Tensor, imitate: bool) -> dict[str, Tensor]:
    flow = imitating_flow(settings, seed, pool).flow if imitate else new_flow(settings, seed, pool)
    # a flow-matching step costs about a third of a query step
    steps = settings.ood_query_steps + (0 if imitate else settings.ood_flow_steps // 3)
    return {"losses": torch.tensor(fit_queries(flow, pool, steps, seed)), **flow.state_dict()}


def queried_flow(settings: Profile, seed: int, pool: Tensor, imitate: bool = True) -> TrainedFlow:
    """The flow after flow matching and then the query loss; without the former it gets its steps in query steps instead."""
    return _restored(new_flow(settings, seed, pool), _queried(settings, seed, pool, imitate))


def _restored(flow: NetworkFlow, stored: dict[str, Tensor]) -> TrainedFlow:
    flow.load_state_dict({name: tensor for name, tensor in stored.items() if name != "losses"})
    return TrainedFlow(flow.requires_grad_(), stored["losses"].tolist())


Initialise = Callable[[Episodes], Tensor]


def initialisations(settings: Profile, seed: int, data: Data) -> dict[str, Initialise]:
    """Every initialisation of the comparison by name: episodes → weights [m, p]."""
    model, pool = cnn_embed(), data.pools.train
    softmax, body = softmax_body(settings, seed, pool), prototype_body(settings, seed, pool)
    zoo = task_zoo(settings, seed, pool)
    softmax_decay = choose_weight_decay(model, softmax, data.validation)
    body_decay = choose_weight_decay(model, body.weights, data.validation)
    average = zoo.weights.mean(0, keepdim=True)
    return {
        "kaiming": lambda e: model.initialise(len(e), seeded(seed, 2)).to(e.support_x),
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
    zoo, tasks = shared.canonical_zoo(settings, seed).train, shared.zoo_tasks(settings)
    flow = shared.latent_flow(settings, seed)
    features, model, average = shared.image_features(tasks), zoo.model, zoo.weights.mean(0, keepdim=True)
    hundred = zoo.weights[torch.randperm(len(zoo), generator=seeded(seed, 4))[:100]]

    def generate(e: Episodes) -> Tensor:
        contexts = [set_mean_context(features.features(x), e.support_y, e.way) for x in e.support_x]
        return torch.cat([flow.sample(1, y, seeded(seed, 5, i)) for i, y in enumerate(contexts)])

    return {
        "kaiming": lambda e: model.initialise(len(e), seeded(seed, 2)).to(e.support_x),
        "zoo_average": lambda e: average.expand(len(e), -1),
        "retrieval_matched": lambda e: retrieve_matched(model, hundred, e),
        "latent_flow": generate,
    }


@dataclass(frozen=True)
class Curve:
    """Query accuracy [epochs, m] of an initialisation on the test episodes, and the learning rate chosen on validation."""

    accuracy: Tensor
    learning_rate: float


def compare(model: Classifier, methods: dict[str, Initialise], data: Data, seed: int) -> dict[str, Curve]:
    """Fine-tune from every initialisation on the same episodes, each at the learning rate that suited it on validation."""
    curves = {}
    for name, initialise in methods.items():
        rate = choose_learning_rate(model, initialise(data.validation), data.validation)
        curves[name] = Curve(adaptation_curve(model, initialise(data.test), data.test, rate, seed=seed), rate)
    return curves


def _curves(stored: Artifact) -> dict[str, Curve]:
    return {name: Curve(stored.tensors[name], rate) for name, rate in stored.meta["rates"].items()}


@memo(_curves)
def _compared(settings: Profile, seed: int, data: Data, latent: bool) -> Artifact:
    methods = latent_initialisations(settings, seed) if latent else initialisations(settings, seed, data)
    curves = compare(cnn_small() if latent else cnn_embed(), methods, data, seed)
    rates = {name: curve.learning_rate for name, curve in curves.items()}
    return Artifact({name: curve.accuracy for name, curve in curves.items()}, {"rates": rates})


def compared(settings: Profile, seed: int, data: Data) -> dict[str, Curve]:
    """Curves of all the `initialisations`."""
    return _compared(settings, seed, data, latent=False)


def latent_compared(settings: Profile, seed: int, data: Data) -> dict[str, Curve]:
    """Curves of all the `latent_initialisations`."""
    return _compared(settings, seed, data, latent=True)


def reward_gains(settings: Profile, seed: int, flow: NetworkFlow, data: Data, places: list[int]) -> dict[str, Tensor]:
    """Query accuracy [len(places)] of networks generated for these test episodes before and after reward fine-tuning.

    "held_out" rewards support images that the flow was not shown, "same" those it was shown.
    """
    accuracies: dict[str, list[Tensor]] = {"before": [], "held_out": [], "same": []}
    for place in places:
        episode = data.test.at([place])
        support, number = episode.support_x[0], 1000 * seed + place
        flows = {
            "before": flow,
            "held_out": reward_fine_tune(flow, support, settings.ood_reward_steps, number),
            "same": reward_fine_tune(flow, support, settings.ood_reward_steps, number, context=None),
        }
        for name, tuned in flows.items():
            accuracies[name].append(query_accuracy(flow.model, sampler(tuned, seed)(episode), episode))
    return {name: torch.cat(values) for name, values in accuracies.items()}
