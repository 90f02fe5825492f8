"""The tutorial's own artefacts, built once and cached: what a notebook needs from the ones before it.

Each function gives the same object for the same settings and seed, from the cache if it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from flownlib.context import CAMLContext, PCAFeatures, set_mean_context
from flownlib.encoders import PCA, Encoder, WeightSpace
from flownlib.evaluation import Reference
from flownlib.extensions.backbone import Backbone, TorchvisionFeatures, torchvision_features, train_backbone
from flownlib.extensions.diffusion import LatentDiffusion
from flownlib.extensions.neuron_tokens import neuron_tokens
from flownlib.extensions.regression import HyperNetwork, KernelDensity
from flownlib.flow import FlowTraining, GaussianPrior
from flownlib.generators import Contexts, FlowGenerator, Generator
from flownlib.harness.memo import memo, tensors
from flownlib.harness.settings import Profile
from flownlib.optimisation import seeded
from flownlib.scoring import Split, Task
from flownlib.speed.collect import collect
from flownlib.speed.plan import Training
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.symmetry import Aligner
from flownlib.tasks import glyph_pool, glyphs, load_task
from flownlib.tasks.base import SplitSizes
from flownlib.tasks.glyphs import ALPHABETS, IN_DISTRIBUTION
from flownlib.vae import VAE, VAESettings, train_vae
from flownlib.zoo import Zoo

CONTEXT_DIM = 16  # features of an image in a context
ImageFeatures = PCAFeatures | Backbone | TorchvisionFeatures


def split_sizes(settings: Profile) -> SplitSizes:
    """Images in each split."""
    return SplitSizes(settings.images_train, settings.images_validation, settings.images_test)


def zoo_tasks(settings: Profile) -> dict[str, Task]:
    """The tasks of the main zoo by name."""
    return {name: load_task(name, split_sizes(settings)) for name in IN_DISTRIBUTION[: settings.zoo_tasks]}


def zoo_settings(settings: Profile, seed: int, kind: str = "independent", **changes) -> ZooSettings:
    """The main zoo's settings, with some of them changed."""
    training = Training(settings.epochs, settings.batch_size, settings.learning_rate)
    values = {
        "tasks": IN_DISTRIBUTION[: settings.zoo_tasks],
        "networks": settings.networks_per_task,
        "kind": kind,
        "sizes": split_sizes(settings),
        "training": training,
        "seed": seed,
    }
    return ZooSettings(**(values | changes))


@dataclass(frozen=True)
class CanonicalZoo:
    """A zoo split by seed, after balancing and alignment; the aligner has seen the training networks only.

    Without an aligner the weights are as they came.
    """

    train: Zoo
    held_out: Zoo
    aligner: Aligner | None


def canonical_zoo(settings: Profile, seed: int, progress: bool = True, kind: str = "independent") -> CanonicalZoo:
    """Collect the main zoo of a kind, split it by seed, align it."""
    train, held_out = collect(zoo_settings(settings, seed, kind), progress=progress).split(settings.held_out_per_task)
    stored = aligned(train, held_out, seed)
    aligner = Aligner(train.model, {task: stored[f"reference.{task}"] for task in train.tasks})
    return CanonicalZoo(train.with_weights(stored["train"]), held_out.with_weights(stored["held_out"]), aligner)


@memo(tensors)
def aligned(train: Zoo, held_out: Zoo, seed: int) -> dict[str, Tensor]:
    """Aligned weights [n, p] as "train" and "held_out", and the references [p] they were matched to, by task."""
    aligner = Aligner.fit(train, seed)
    parts = {"train": aligner(train, seed).weights, "held_out": aligner(held_out, seed).weights}
    return parts | {f"reference.{task}": reference for task, reference in aligner.references.items()}


def vae_settings(settings: Profile) -> VAESettings:
    """The VAE's settings for a profile."""
    return VAESettings(settings.latent_dim, settings.vae_width, settings.vae_steps)


@memo(VAE.from_artifact)
def trained_vae(
    settings: Profile, seed: int, progress: bool = True, kind: str = "independent", chosen: VAESettings | None = None
) -> VAE:
    """The VAE of the canonical zoo's training networks; with the profile's settings unless others are chosen."""
    zoo = canonical_zoo(settings, seed, progress, kind).train
    return train_vae(zoo, zoo_tasks(settings), chosen or vae_settings(settings), seed, progress)[0]


def encoder(settings: Profile, seed: int, progress: bool = True) -> Encoder:
    """The encoder that the settings name, fitted to the canonical zoo's training networks."""
    if settings.encoder == "vae":
        return trained_vae(settings, seed, progress)
    zoo = canonical_zoo(settings, seed, progress).train
    return PCA.fit(zoo, min(settings.latent_dim, len(zoo) - 1)) if settings.encoder == "pca" else WeightSpace.fit(zoo)


def image_features(tasks: Mapping[str, Task], dim: int = CONTEXT_DIM) -> PCAFeatures:
    """Frozen principal-component features of the tasks' training images."""
    return PCAFeatures(dim).fit(torch.cat([task.train.x for task in tasks.values()]))


def context_backbone(settings: Profile, seed: int) -> Backbone | TorchvisionFeatures:
    """A frozen convolutional encoder: trained on characters that resemble none of any task here, or a torchvision model."""
    if settings.context_model != "trained":
        images = torch.cat([task.train.x for task in zoo_tasks(settings).values()])
        return torchvision_features(settings.context_model, images, CONTEXT_DIM)
    backbone = Backbone(dim=CONTEXT_DIM)
    backbone.load_state_dict(trained_context_backbone(settings, seed))
    return backbone.eval().requires_grad_(False)


@memo(tensors)
def trained_context_backbone(settings: Profile, seed: int) -> dict[str, Tensor]:
    """The state of a convolutional encoder trained on characters that resemble none of any task here."""
    every = "".join(text for text, _ in ALPHABETS.values()) + "0123456789"
    text = glyphs.without_lookalikes(glyphs.characters(glyphs.TRAINING_SCRIPTS), every)[:: settings.context_every]
    pool = glyph_pool(text, settings.context_images).float()
    pool = ((pool - pool.mean()) / pool.std())[:, :, None]
    return train_backbone(pool, settings.context_steps, seed, dim=CONTEXT_DIM).state_dict()


def support_sets(
    features: ImageFeatures, tasks: Mapping[str, Task], per_class: int, draws: int, seed: int
) -> dict[str, Tensor]:
    """The features of each task's support sets [draws, classes * per_class * d], sorted by class, for `CAMLContext`."""
    return {
        name: torch.stack([features.features(s.x).flatten() for s in supports])
        for name, supports in _supports(tasks, per_class, draws, seed).items()
    }


def _supports(tasks: Mapping[str, Task], per_class: int, draws: int, seed: int) -> dict[str, list[Split]]:
    generators = {name: seeded(seed, number) for number, name in enumerate(tasks)}
    return {name: [task.support(per_class, generators[name]) for _ in range(draws)] for name, task in tasks.items()}


def support_contexts(
    features: ImageFeatures, tasks: Mapping[str, Task], per_class: int, draws: int, seed: int
) -> dict[str, Tensor]:
    """Contexts y [draws, c] of each task, one for each random support set."""
    return {
        name: torch.stack([set_mean_context(features.features(s.x), s.y, tasks[name].num_classes) for s in supports])
        for name, supports in _supports(tasks, per_class, draws, seed).items()
    }


def flow_training(settings: Profile) -> FlowTraining:
    """How the profile trains its flows."""
    return FlowTraining(settings.flow_steps, settings.flow_batch)


def latent_flow(settings: Profile, seed: int, progress: bool = False) -> FlowGenerator:
    """FLoWN's conditional flow on the encoder's latents, fitted to the canonical training zoo."""
    zoo, tasks = canonical_zoo(settings, seed, progress), zoo_tasks(settings)
    contexts = support_contexts(image_features(tasks), tasks, settings.support_per_class, 32, seed)
    generator = FlowGenerator(encoder(settings, seed, progress), width=settings.flow_width, training=flow_training(settings))
    return generator.fit(zoo.train, contexts, seed)


def references(zoo: CanonicalZoo, tasks: Mapping[str, Task]) -> dict[str, Reference]:
    """What samples are judged against, by task."""
    space = WeightSpace.fit(zoo.train)
    return {name: Reference.of(task, zoo.train, zoo.held_out, space, zoo.aligner) for name, task in tasks.items()}


def autoencoders(settings: Profile) -> dict[str, VAESettings]:
    """Every autoencoder of the comparison by name."""
    mlp = vae_settings(settings)
    return {
        "linear": replace(mlp, architecture="linear"),
        "vae": mlp,
        "vae_large": replace(mlp, latent_dim=2304),  # as many as the graph's; hidden layers as before
        # small and slow to learn: more steps
        "vae_tokens": replace(
            mlp,
            architecture="tokens",
            width=settings.token_width,
            token_size=128,
            learning_rate=2e-3,
            steps=7 * settings.vae_steps // 3,
        ),
        # p-diff: no behaviour, no KL divergence, a little noise on weights and latents
        "vae_conv1d": replace(
            mlp,
            architecture="conv1d",
            width=settings.conv_width,
            weight_loss=1.0,
            behaviour_loss=0.0,
            kl_loss=0.0,
            input_noise=1e-3,
            latent_noise=0.1,
        ),
        # asked to return the network it was given: networks made by jitter, weights far before behaviour
        "vae_graph": replace(
            mlp,
            architecture="graph",
            width=settings.graph_width,
            steps=3 * settings.vae_steps // 2,
            batch_size=12,
            learning_rate=3e-3,
            input_noise=0.0,
            jitter=0.3,
            weight_loss=100.0,
            kl_loss=1e-4,
        ),
    }


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
    references: dict[str, Reference]


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
