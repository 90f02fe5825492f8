"""The tutorial's own artefacts, built once and cached: what a notebook needs from the ones before it.

Each function gives the same object for the same settings and seed, from the cache if it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flownlib.context import set_mean_context
from flownlib.encoders import Encoder, WeightSpace
from flownlib.evaluation import ReferenceSet
from flownlib.extensions import graph_encoder, linear_vae, weight_tokens  # noqa: F401 (they register their architectures)
from flownlib.extensions.backbone import Backbone, PCAFeatures, TorchvisionFeatures, torchvision_features, train_backbone
from flownlib.extensions.pca import PCA
from flownlib.generators import FlowGenerator, FlowTraining
from flownlib.harness.memo import memo, tensors
from flownlib.harness.profiles import Profile
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
    """The main zoo's settings, with some of them changed; a single run has no more checkpoints than steps."""
    training = Training(settings.epochs, settings.batch_size, settings.learning_rate)
    most = training.steps(settings.images_train) if kind == "one_run" else settings.networks_per_task
    values = {
        "tasks": IN_DISTRIBUTION[: settings.zoo_tasks],
        "networks": min(most, settings.networks_per_task),
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


def references(zoo: CanonicalZoo, tasks: Mapping[str, Task]) -> dict[str, ReferenceSet]:
    """What samples are judged against, by task."""
    space = WeightSpace.fit(zoo.train)
    return {name: ReferenceSet.of(task, zoo.train, zoo.held_out, space, zoo.aligner) for name, task in tasks.items()}


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
