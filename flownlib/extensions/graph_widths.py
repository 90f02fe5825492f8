"""One graph VAE for classifiers of several widths: the same parameters on each, trained on all their zoos together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flownlib.extensions.graph_encoder import standardiser_by_tensor
from flownlib.optimisation import minimise, seeded_module
from flownlib.scoring import Task
from flownlib.vae import VAE, VAESettings, standardise_latents, vae_loss
from flownlib.zoo import Zoo


def at_width(vae: VAE, zoo: Zoo) -> VAE:
    """A graph VAE for another zoo, whose classifier differs in its hidden widths only.

    The parameters are shared; one mean and one scale for each tensor, and for each latent channel, are the zoo's own.

    Raises:
        ValueError: if the classifiers differ in more than their widths.
    """
    other = seeded_module(0, lambda: VAE(zoo.model, vae.settings)).to(zoo.weights.device)
    other.encoder, other.decoder = vae.encoder.on(zoo.model), vae.decoder.on(zoo.model)
    standardiser = standardiser_by_tensor(zoo.weights, zoo.layout)
    other.mean.copy_(standardiser.mean)
    other.scale.copy_(standardiser.scale)
    with torch.no_grad():
        standardise_latents(other, zoo)
    return other


def train_on_widths(zoos: Sequence[Zoo], tasks: Mapping[str, Task], settings: VAESettings, seed: int) -> list[VAE]:
    """Fit one set of graph parameters to several zoos; each step takes networks of one zoo and one task.

    Returns:
        A VAE for each zoo, in evaluation mode, with shared parameters.

    Raises:
        ValueError: if the architecture is not "graph", or the classifiers differ in more than their widths.
    """
    if settings.architecture != "graph":
        raise ValueError(f'classifiers of several widths need the architecture "graph", not {settings.architecture!r}')
    generator = torch.Generator().manual_seed(seed)
    first = seeded_module(seed, lambda: VAE(zoos[0].model, settings)).to(zoos[0].weights.device)
    vaes = [at_width(first, zoo) for zoo in zoos]

    def draw(count: int, size: int) -> Tensor:
        return torch.randint(count, (size,), generator=generator)

    def loss() -> Tensor:
        number = int(draw(len(zoos), 1))
        name = zoos[number].tasks[int(draw(len(zoos[number].tasks), 1))]
        weights, images = zoos[number].task(name).weights, tasks[name].train.x
        batch, probes = weights[draw(len(weights), settings.batch_size)], images[draw(len(images), settings.probe_images)]
        return sum(vae_loss(vaes[number], batch, probes, generator).values())

    minimise(loss, first, settings.steps, settings.learning_rate, "VAE of several widths", weight_decay=1e-4)
    return [at_width(first.eval().requires_grad_(False), zoo) for zoo in zoos]
