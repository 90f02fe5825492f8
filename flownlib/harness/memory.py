"""How much memory what is asked for would take, before anything runs. Of the largest tables; activations come on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from flownlib.harness.profiles import Profile

PIXELS = 28 * 28 * 4  # bytes of an image
WEIGHTS = 2464 * 4  # bytes of a network of the main zoo


def require_memory(parts: Mapping[str, int]) -> None:
    """Refuse what this machine's memory cannot hold.

    Args:
        parts: bytes by what they are for and which settings they follow from.

    Raises:
        ValueError: naming the largest part, what it takes and what there is.
    """
    there, (largest, needed) = psutil.virtual_memory().total, max(parts.items(), key=lambda part: part[1])
    if needed > there:
        sizes = f"{needed / 2**30:,.1f} GiB of memory, and this machine has {there / 2**30:,.1f}"
        raise ValueError(f"{largest} would take {sizes}: ask for less")


def profile_memory(settings: Profile) -> dict[str, int]:
    """Bytes that the largest tables of each chapter take, by what they are and which settings they follow from; an estimate."""
    s = settings
    layers, batches = 16, 4 * 8 * s.flow_batch  # of weights: themselves, gradients and Adam's moments; eight layers' outputs
    images = s.images_train + s.images_validation + max(s.images_test, s.own_images_test)
    lora_images = s.lora_images + s.lora_validation_images + s.lora_test_images
    return {
        "the alphabets (images_train, images_validation, images_test)": 13 * PIXELS * images,
        "the alphabets (lora_images, lora_validation_images, lora_test_images)": 12 * PIXELS * lora_images,
        "the zoo (zoo_tasks, networks_per_task)": 4 * WEIGHTS * s.zoo_tasks * s.networks_per_task,
        "training (epochs, images_train)": 8 * 16 * s.epochs * s.images_train,
        "the survey (survey_networks)": 2 * WEIGHTS * 13 * s.survey_networks,
        "the zoo (frontier_tasks, frontier_networks)": 4 * WEIGHTS * s.frontier_tasks * s.frontier_networks,
        "the autoencoder (vae_width, latent_dim)": layers * s.vae_width * (2 * 2464 + s.vae_width + 2 * s.latent_dim),
        "the transformer (token_width)": layers * 24 * s.token_width**2,
        "the convolutions (conv_width)": layers * 120 * s.conv_width**2,
        "the graph encoder (graph_width)": layers * 24 * s.graph_width**2,
        "the flow (flow_width, flow_batch)": layers * 4 * s.flow_width**2 + batches * s.flow_width,
        "the flow (frontier_flow_width, flow_batch)": layers * 4 * s.frontier_flow_width**2 + batches * s.frontier_flow_width,
        "the flow (neuron_width, flow_batch)": layers * 24 * s.neuron_width**2 + batches // 4 * 48 * s.neuron_width,
        "characters (context_images, context_every)": PIXELS * s.context_images * 765 // s.context_every,
        "samples (samples_per_task)": 8 * WEIGHTS * s.zoo_tasks * s.samples_per_task,
        "characters (ood_classes, ood_images)": PIXELS * min(s.ood_classes, 765) * s.ood_images,
        "episodes (ood_draws, ood_test_images)": PIXELS * 50 * s.ood_draws * s.ood_test_images,
        "episodes (ood_validation_episodes, ood_test_images)": PIXELS * 10 * s.ood_validation_episodes * s.ood_test_images,
        "the zoo (ood_tasks)": 4 * WEIGHTS * s.ood_tasks,
        "characters (fewshot_classes, fewshot_images)": PIXELS * min(s.fewshot_classes, 765) * s.fewshot_images,
        "heads (fewshot_heads)": 4 * 4 * 5 * 65 * s.fewshot_heads,
        "episodes (fewshot_episodes)": 4 * 4 * 5 * 55 * 64 * s.fewshot_episodes,
        "the plane (plane_networks)": 100 * 3 * s.plane_networks,
        "runs (own_runs, own_epochs)": s.own_runs * (12 * 7178 + 8 * s.own_epochs * s.images_train),
    }
