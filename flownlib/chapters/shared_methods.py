"""Notebook 03's learned methods: how each is built, what it may choose from, what it chose; and the zoos that they meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
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


def fitted(generator: Generator, experiment: Setup) -> tuple[Generator, float]:
    """The generator, fitted to the setup's training networks, and the processor seconds that it took."""
    start = time.process_time()
    generator.fit(experiment.zoo.train, experiment.contexts, experiment.seed)
    return generator, time.process_time() - start


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
    draws = (32, seed), (1, 1_000 + seed)  # how many support sets of each task, and their seed: to learn from, to sample for
    supports = [read(features, tasks, shot, *drawn) for read in (support_contexts, support_sets) for drawn in draws]
    return Setup(settings, seed, kind, zoo, tasks, *supports, references(zoo, tasks))


def vae_of(experiment: Setup) -> Encoder:
    """The VAE of the setup's zoo."""
    return trained_vae(experiment.settings, experiment.seed, kind=experiment.kind)


def pca_of(experiment: Setup) -> Encoder:
    """All principal components that the training networks have, in their own proportions."""
    return PCA.fit(experiment.zoo.train, len(experiment.zoo.train) - 1, whiten=False)


def conv1d_of(experiment: Setup) -> Encoder:
    """p-diff's autoencoder, trained on the setup's zoo."""
    settings = autoencoders(experiment.settings)["vae_conv1d"]
    return trained_vae(experiment.settings, experiment.seed, kind=experiment.kind, chosen=settings)


def weights_of(experiment: Setup) -> Encoder:
    """The weights themselves, standardised."""
    return WeightSpace.fit(experiment.zoo.train)


Build = Callable[[Setup, str, Choice, int, FlowTraining], Generator]  # (setup, name, choice, width, training)


@dataclass(frozen=True)
class Method:
    """A learned method: how it is built, not yet fitted, and the four settings that it may choose among.

    `best` are the values of those with the best validation accuracy: on every kind of zoo, or one for each of KINDS.
    """

    build: Build
    grid: list[Choice]
    best: list[tuple]


def _grid(**choices: tuple) -> list[Choice]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _flow(encoder: Callable[[Setup], Encoder], predicts: str = "x_1") -> Build:
    """A flow in the encoder's latents."""
    return lambda experiment, name, choice, width, training: FlowGenerator(
        encoder(experiment), name, choice.get("predicts", predicts), width, training
    )


def _latent(kind: type[LatentDiffusion | HyperNetwork], encoder: Callable[[Setup], Encoder]) -> Build:
    """Another generator of the encoder's latents."""
    return lambda experiment, name, choice, width, training: kind(encoder(experiment), name, width, training)


def _kernel_density(experiment: Setup, name: str, choice: Choice, width: int, training: FlowTraining) -> KernelDensity:
    return KernelDensity(vae_of(experiment), name, choice.get("bandwidth", 1.0))


def _deep_weight_flow(experiment: Setup, name: str, choice: Choice, width: int, training: FlowTraining) -> FlowGenerator:
    """DeepWeightFlow's recipe (2026): principal components, straight paths from a tiny Gaussian, Runge-Kutta steps."""
    encoder = pca_of(experiment)
    prior = GaussianPrior(encoder.latent_dim, choice.get("scale", 0.001))
    return FlowGenerator(encoder, name, "velocity", 2 * width, training, "rk4", 20, prior=prior)


def _neuron_flow(experiment: Setup, name: str, choice: Choice, width: int, training: FlowTraining) -> FlowGenerator:
    """The transformer over neurons, in weight space; its steps are dearer, so that its batches are smaller."""
    training = replace(training, batch_size=training.batch_size // 4)
    return FlowGenerator(weights_of(experiment), name, "x_1", experiment.settings.neuron_width, training, network=neuron_tokens)


SHARES = (0.5, 1.0)  # of the profile's flow steps
RATES, WIDTHS = _grid(share=SHARES, learning_rate=(1e-3, 3e-3)), _grid(share=SHARES, width=(256, 512))


# the first of a pair of choices is that of the shared zoo
METHODS: dict[str, Method] = {
    "latent_flow": Method(_flow(vae_of, "velocity"), _grid(share=SHARES, predicts=("velocity", "x_1")), [(0.5, "x_1")]),
    "latent_ddpm": Method(_latent(LatentDiffusion, vae_of), RATES, [(1.0, 0.003)]),
    "p_diff": Method(_latent(LatentDiffusion, conv1d_of), RATES, [(1.0, 0.001), (1.0, 0.003)]),
    "pca_flow": Method(_flow(pca_of), WIDTHS, [(1.0, 512)]),
    "deep_weight_flow": Method(_deep_weight_flow, _grid(share=SHARES, scale=(0.001, 0.01)), [(1.0, 0.01)]),
    "weight_flow": Method(_flow(weights_of), WIDTHS, [(1.0, 512)]),
    "neuron_flow": Method(_neuron_flow, RATES, [(0.5, 0.001)]),
    "kernel_density": Method(_kernel_density, _grid(bandwidth=(0.1, 0.3, 1.0, 2.0)), [(0.1,), (2.0,)]),
    "hypernetwork": Method(_latent(HyperNetwork, vae_of), RATES, [(0.5, 0.001), (0.5, 0.003)]),
}
GRID: dict[str, list[Choice]] = {name: method.grid for name, method in METHODS.items()}


def tuned(kind: str, method: str) -> Choice:
    """The choice among the method's grid with the best validation accuracy on that kind of zoo."""
    best = METHODS[method].best
    return dict(zip(METHODS[method].grid[0], best[KINDS.index(kind) if len(best) > 1 else 0], strict=True))


def make(name: str, experiment: Setup, choice: Choice) -> Generator:
    """The method of that name with those settings, not yet fitted; its encoder is built or loaded."""
    training = flow_training(experiment.settings)
    rate, steps = choice.get("learning_rate", training.learning_rate), int(choice.get("share", 1.0) * training.steps)
    training = replace(training, steps=steps, learning_rate=rate)
    return METHODS[name].build(experiment, name, choice, choice.get("width", experiment.settings.flow_width), training)


def caml_flow(experiment: Setup, choice: Choice) -> FlowGenerator:
    """The latent flow with a CAML-style transformer in place of class means; it is fitted on and asked with support sets."""
    conditioner = partial(CAMLContext, CONTEXT_DIM, experiment.zoo.train.model.num_classes)
    return replace(make("latent_flow", experiment, choice), name="latent_flow_caml", conditioner=conditioner)
