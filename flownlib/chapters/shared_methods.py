"""What notebooks 03 and 06 share: every learned method with its settings, and what a comparison of them needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from flownlib.chapters.shared import (
    CONTEXT_DIM,
    CanonicalZoo,
    autoencoders,
    canonical_zoo,
    context_backbone,
    flow_training,
    references,
    support_contexts,
    support_sets,
    trained_vae,
    zoo_tasks,
)
from flownlib.context import Contexts
from flownlib.encoders import Encoder, WeightSpace
from flownlib.evaluation import ReferenceSet
from flownlib.extensions.caml import CAMLContext
from flownlib.extensions.diffusion import LatentDiffusion
from flownlib.extensions.neuron_tokens import neuron_tokens
from flownlib.extensions.pca import PCA
from flownlib.extensions.regression import HyperNetwork, KernelDensity
from flownlib.flow import GaussianPrior
from flownlib.generators import FlowGenerator, FlowTraining, Generator
from flownlib.harness.profiles import Profile
from flownlib.scoring import Task


def variant(generator: Any, **changes: Any) -> Any:
    """The same fitted generator with other fields, e.g. another number of solver steps; the given one is not changed.

    Raises:
        ValueError: for a field that it does not have.
    """
    other = copy(generator)
    for name, value in changes.items():
        if not hasattr(generator, name):
            raise ValueError(f"{generator.name} has no field {name!r} to change")
        setattr(other, name, value)
    return other


def wrong_contexts(contexts: Contexts) -> Contexts:
    """Each task with the contexts of the next one, the last with those of the first, as a control."""
    names = list(contexts)
    return {name: contexts[following] for name, following in zip(names, [*names[1:], names[0]], strict=True)}


def fitted(generator: Generator, made: Setup) -> tuple[Generator, float]:
    """The generator, fitted to the setup's training networks, and the processor seconds that it took."""
    start = time.process_time()
    generator.fit(made.zoo.train, made.contexts, made.seed)
    return generator, time.process_time() - start


TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "shared": {
        "latent_flow": {"share": 0.5, "predicts": "x_1"},
        "latent_ddpm": {"share": 1.0, "learning_rate": 0.003},
        "p_diff": {"share": 1.0, "learning_rate": 0.001},
        "pca_flow": {"share": 1.0, "width": 512},
        "deep_weight_flow": {"share": 1.0, "scale": 0.01},
        "weight_flow": {"share": 1.0, "width": 512},
        "neuron_flow": {"share": 0.5, "learning_rate": 0.001},
        "kernel_density": {"bandwidth": 0.1},
        "hypernetwork": {"share": 0.5, "learning_rate": 0.001},
    },
    "independent": {
        "latent_flow": {"share": 0.5, "predicts": "x_1"},
        "latent_ddpm": {"share": 1.0, "learning_rate": 0.003},
        "p_diff": {"share": 1.0, "learning_rate": 0.003},
        "pca_flow": {"share": 1.0, "width": 512},
        "deep_weight_flow": {"share": 1.0, "scale": 0.01},
        "weight_flow": {"share": 1.0, "width": 512},
        "neuron_flow": {"share": 0.5, "learning_rate": 0.001},
        "kernel_density": {"bandwidth": 2.0},
        "hypernetwork": {"share": 0.5, "learning_rate": 0.003},
    },
}


def tuned(kind: str, method: str) -> dict[str, Any]:
    """The choice among `recipes_generation.GRID` with the best validation accuracy on that kind of zoo."""
    return TUNED[kind][method]


KINDS = ("shared", "independent")
Choice = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """One zoo and all that a method is given: contexts to train with, and one unseen support set a task to sample for."""

    settings: Profile
    seed: int
    kind: str
    zoo: CanonicalZoo
    tasks: dict[str, Task]
    contexts: Contexts
    fresh: Contexts
    support: Contexts  # the same support sets as in `contexts`, as features of single images
    fresh_support: Contexts
    references: dict[str, ReferenceSet]


def setup(settings: Profile, seed: int, kind: str) -> Setup:
    """Build or load everything for one seed and kind of zoo."""
    zoo, tasks = canonical_zoo(settings, seed, kind=kind), zoo_tasks(settings)
    features, shot = context_backbone(settings, seed), settings.support_per_class
    return Setup(
        settings,
        seed,
        kind,
        zoo,
        tasks,
        support_contexts(features, tasks, shot, 32, seed),
        support_contexts(features, tasks, shot, 1, 1_000 + seed),
        support_sets(features, tasks, shot, 32, seed),
        support_sets(features, tasks, shot, 1, 1_000 + seed),
        references(zoo, tasks),
    )


def vae_of(made: Setup) -> Encoder:
    """The VAE of the setup's zoo."""
    return trained_vae(made.settings, made.seed, kind=made.kind)


def pca_of(made: Setup) -> Encoder:
    """All principal components that the training networks have, in their own proportions."""
    return PCA.fit(made.zoo.train, len(made.zoo.train) - 1, whiten=False)


def conv1d_of(made: Setup) -> Encoder:
    """p-diff's autoencoder, trained on the setup's zoo."""
    chosen = autoencoders(made.settings)["vae_conv1d"]
    return trained_vae(made.settings, made.seed, kind=made.kind, chosen=chosen)


def _grid(**choices: tuple) -> list[Choice]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


SHARES = (0.5, 1.0)  # of the profile's flow steps
# Every method may choose among four settings.
GRID: dict[str, list[Choice]] = {
    "latent_flow": _grid(share=SHARES, predicts=("velocity", "x_1")),
    "latent_ddpm": _grid(share=SHARES, learning_rate=(1e-3, 3e-3)),
    "p_diff": _grid(share=SHARES, learning_rate=(1e-3, 3e-3)),
    "pca_flow": _grid(share=SHARES, width=(256, 512)),
    "deep_weight_flow": _grid(share=SHARES, scale=(0.001, 0.01)),
    "weight_flow": _grid(share=SHARES, width=(256, 512)),
    "neuron_flow": _grid(share=SHARES, learning_rate=(1e-3, 3e-3)),
    "kernel_density": _grid(bandwidth=(0.1, 0.3, 1.0, 2.0)),
    "hypernetwork": _grid(share=SHARES, learning_rate=(1e-3, 3e-3)),
}


def make(name: str, made: Setup, choice: Choice) -> Generator:
    """The method of that name with those settings, not yet fitted; its encoder is built or loaded."""
    training = flow_training(made.settings)
    rate = choice.get("learning_rate", training.learning_rate)
    training = replace(training, steps=int(choice.get("share", 1.0) * training.steps), learning_rate=rate)
    width = choice.get("width", made.settings.flow_width)
    makers: dict[str, Callable[[], Generator]] = {
        "latent_flow": lambda: FlowGenerator(vae_of(made), name, choice.get("predicts", "velocity"), width, training),
        "latent_ddpm": lambda: LatentDiffusion(vae_of(made), name, width, training),
        "p_diff": lambda: LatentDiffusion(conv1d_of(made), name, width, training),
        "pca_flow": lambda: FlowGenerator(pca_of(made), name, "x_1", width, training),
        "deep_weight_flow": lambda: _deep_weight_flow(made, 2 * width, training, choice.get("scale", 0.001)),
        "weight_flow": lambda: FlowGenerator(WeightSpace.fit(made.zoo.train), name, "x_1", width, training),
        "neuron_flow": lambda: _neuron_flow(made, replace(training, batch_size=training.batch_size // 4)),
        "kernel_density": lambda: KernelDensity(vae_of(made), name, choice.get("bandwidth", 1.0)),
        "hypernetwork": lambda: HyperNetwork(vae_of(made), name, width, training),
    }
    return makers[name]()


def _deep_weight_flow(made: Setup, width: int, training: FlowTraining, scale: float) -> FlowGenerator:
    """DeepWeightFlow's recipe (2026): principal components, straight paths from a tiny Gaussian, Runge-Kutta steps."""
    encoder = pca_of(made)
    prior = GaussianPrior(encoder.latent_dim, scale)
    return FlowGenerator(encoder, "deep_weight_flow", "velocity", width, training, "rk4", 20, prior=prior)


def _neuron_flow(made: Setup, training: FlowTraining) -> FlowGenerator:
    """The transformer over neurons, in weight space; its steps are dearer, so that its batches are smaller."""
    space, width = WeightSpace.fit(made.zoo.train), made.settings.neuron_width
    return FlowGenerator(space, "neuron_flow", "x_1", width, training, network=neuron_tokens)


def caml_flow(made: Setup, choice: Choice) -> FlowGenerator:
    """The latent flow with a CAML-style transformer in place of class means; it is fitted on and asked with support sets."""
    flow, features = make("latent_flow", made, choice), CONTEXT_DIM
    way = made.zoo.train.model.num_classes
    return replace(flow, name="latent_flow_caml", conditioner=CAMLContext(features, way, flow.width))
