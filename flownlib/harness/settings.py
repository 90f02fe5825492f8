"""Named settings: `smoke` proves that everything runs, `tutorial` fits a laptop, `paper` fits a GPU.

A profile changes sizes, never code paths. Every field can be overridden by name; an unknown name or a wrong type
is refused before anything runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

ENCODERS = ("vae", "pca", "weights")


@dataclass(frozen=True)
class Profile:
    """Flat settings; the defaults are the tutorial's."""

    profile: str = "tutorial"
    # tasks
    images_train: int = 2000
    images_validation: int = 1000
    images_test: int = 5000
    # zoo collection (notebook 01)
    zoo_tasks: int = 4  # of the eight alphabets in distribution
    networks_per_task: int = 80
    held_out_per_task: int = 16  # of those, kept away from every generator
    survey_networks: int = 8  # networks for each of the other alphabets
    epochs: int = 15
    batch_size: int = 50
    learning_rate: float = 3e-3
    # variational autoencoder (notebook 02)
    latent_dim: int = 64
    vae_width: int = 512
    vae_steps: int = 1200
    # other encoders (notebook 02)
    token_width: int = 64
    conv_width: int = 16
    graph_width: int = 96
    lora_rank: int = 4
    # flow (notebook 03)
    encoder: str = "vae"  # whose latents the flow lives in: one of ENCODERS
    flow_width: int = 256
    flow_steps: int = 800
    flow_batch: int = 128
    neuron_width: int = 64  # of the transformer over neurons
    support_per_class: int = 5
    context_model: str = "trained"  # the frozen image encoder: trained here, or the name of a torchvision model
    context_every: int = 2  # of the characters that the frozen image encoder may learn from
    context_images: int = 60  # for each of them
    context_steps: int = 400
    samples_per_task: int = 64
    # networks for unseen alphabets (notebook 04)
    ood_classes: int = 1000  # training characters at most; there are fewer
    ood_images: int = 80  # for each of them
    ood_body_steps: int = 2500
    ood_prototype_steps: int = 2000
    ood_tasks: int = 160  # ten-class tasks in the zoo
    ood_task_epochs: int = 5
    ood_flow_steps: int = 800
    ood_query_steps: int = 1200
    ood_draws: int = 8  # support sets for each held-out alphabet
    ood_validation_episodes: int = 24
    ood_test_images: int = 60  # for each class
    ood_reward_steps: int = 40
    # heads for 5-way episodes (notebook 05)
    fewshot_classes: int = 1000  # training characters at most; there are fewer
    fewshot_images: int = 80  # for each of them
    fewshot_backbone_classes: int = 240  # characters that the frozen image encoder was trained on
    fewshot_backbone_steps: int = 1000
    fewshot_heads: int = 1000  # many-shot heads that the flow imitates
    fewshot_flow_steps: int = 600
    fewshot_query_steps: int = 500
    fewshot_caml_steps: int = 600
    fewshot_episodes: int = 400  # for each domain
    # the plane of two weights (notebook 00)
    plane_networks: int = 400  # trained for each task
    plane_flow_steps: int = 1500  # on the whole plane, a third of it on the folded one
    plane_repeats: int = 4  # seeds that are run live
    # your own zoo (notebook 07)
    own_runs: int = 96
    own_held_out: int = 32  # of those
    own_epochs: int = 5
    own_pretraining: int = 3  # epochs of the whole network
    own_images_test: int = 2000
    # low-rank adaptation (study lora)
    lora_base_steps: int = 1500
    lora_images: int = 2000  # training images for each alphabet
    lora_validation_images: int = 500
    lora_test_images: int = 2000
    lora_epochs: int = 10
    # studies
    study_seeds: int = 3
    # accuracy with diversity (study frontier)
    frontier_tasks: int = 3
    frontier_networks: int = 320  # for each task
    frontier_held_out: int = 64  # of those
    frontier_images: int = 300  # on which activations are matched
    frontier_corrector_steps: int = 300
    frontier_flow_steps: int = 300
    frontier_flow_width: int = 512

    def changed(self, **changes: Any) -> Profile:
        """These settings with some of them replaced."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        profile="smoke",
        images_train=300,
        images_validation=100,
        images_test=200,
        zoo_tasks=2,
        networks_per_task=12,
        held_out_per_task=4,
        survey_networks=2,
        epochs=3,
        vae_width=64,
        latent_dim=8,
        vae_steps=40,
        token_width=16,
        conv_width=4,
        graph_width=16,
        flow_width=32,
        flow_steps=40,
        flow_batch=32,
        neuron_width=16,
        context_every=40,
        context_images=10,
        context_steps=10,
        samples_per_task=6,
        ood_classes=40,
        ood_images=20,
        ood_body_steps=30,
        ood_prototype_steps=20,
        ood_tasks=12,
        ood_task_epochs=1,
        ood_flow_steps=10,
        ood_query_steps=10,
        ood_draws=2,
        ood_validation_episodes=2,
        ood_test_images=10,
        ood_reward_steps=3,
        fewshot_classes=60,
        fewshot_images=56,
        fewshot_backbone_classes=20,
        fewshot_backbone_steps=20,
        fewshot_heads=30,
        fewshot_flow_steps=10,
        fewshot_query_steps=10,
        fewshot_caml_steps=10,
        fewshot_episodes=20,
        plane_networks=60,
        plane_flow_steps=60,
        plane_repeats=3,
        own_runs=12,
        own_held_out=4,
        own_epochs=3,
        own_pretraining=1,
        own_images_test=200,
        lora_base_steps=10,
        lora_images=100,
        lora_validation_images=20,
        lora_test_images=50,
        lora_epochs=1,
        frontier_tasks=2,
        frontier_networks=16,
        frontier_held_out=4,
        frontier_images=60,
        frontier_corrector_steps=4,
        frontier_flow_steps=10,
        frontier_flow_width=32,
    ),
    "tutorial": Profile(),
    "paper": Profile(
        profile="paper",
        images_train=10000,
        zoo_tasks=8,
        networks_per_task=1000,
        held_out_per_task=100,
        survey_networks=64,
        epochs=50,
        latent_dim=128,
        vae_width=1024,
        vae_steps=20000,
        token_width=256,
        conv_width=64,
        graph_width=128,
        flow_width=512,
        flow_steps=20000,
        flow_batch=512,
        neuron_width=256,
        context_model="resnet18",
        context_every=1,
        context_images=400,
        context_steps=10000,
        samples_per_task=200,
        ood_images=400,
        ood_body_steps=20000,
        ood_prototype_steps=10000,
        ood_tasks=2000,
        ood_flow_steps=10000,
        ood_query_steps=20000,
        ood_draws=50,
        ood_validation_episodes=100,
        fewshot_images=400,
        fewshot_backbone_steps=20000,
        fewshot_heads=20000,
        fewshot_flow_steps=20000,
        fewshot_query_steps=10000,
        fewshot_caml_steps=10000,
        fewshot_episodes=2000,
        own_runs=1000,
        own_held_out=100,
        own_epochs=20,
        own_pretraining=20,
        own_images_test=5000,
        lora_base_steps=10000,
        lora_images=10000,
        lora_validation_images=1000,
        lora_test_images=5000,
        lora_epochs=50,
        frontier_tasks=8,
        frontier_networks=1100,
        frontier_held_out=100,
        frontier_images=2000,
        frontier_corrector_steps=10000,
        frontier_flow_steps=20000,
        frontier_flow_width=1024,
    ),
}


def load(profile: str = "tutorial", overrides: Mapping[str, Any] | None = None) -> Profile:
    """The settings of a profile with some of them replaced.

    The environment variable FLOWN_PROFILE, where set, takes the place of `profile`, so that a committed notebook
    can be re-run small without being edited.

    Raises:
        ValueError: for an unknown profile, setting or encoder, or a value of the wrong type.
    """
    profile = os.environ.get("FLOWN_PROFILE") or profile
    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}; choose one of {', '.join(PROFILES)}")
    settings = PROFILES[profile]
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(Profile) if field.name != "profile"}
    checked = {}
    for name, value in (overrides or {}).items():
        if name not in kinds:
            raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(kinds)}")
        value = float(value) if kinds[name] is float and type(value) is int else value
        if type(value) is not kinds[name]:
            raise ValueError(f"setting {name!r} takes {kinds[name].__name__}, not {value!r}")
        checked[name] = value
    if checked.get("encoder", ENCODERS[0]) not in ENCODERS:
        raise ValueError(f"there is no encoder {checked['encoder']!r}; choose one of {', '.join(ENCODERS)}")
    return replace(settings, **checked)
