"""Named settings: `smoke` proves that everything runs, `tutorial` fits a laptop, `paper` fits a GPU.

A profile changes sizes, never code paths. Every field can be overridden by name; an unknown name, a wrong type or a value
out of range is refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from flownlib.harness.devices import DEVICES, check_device
from flownlib.harness.memory import profile_memory, require_memory
from flownlib.harness.settings import check_fields, from_environment, rules, setting, shown

ENCODERS = ("vae", "pca", "weights")
# (smaller, larger, a, b): a times the smaller setting and b more are at most the larger one
RELATIONS = (
    ("batch_size", "images_train", 5, 0),  # in a varied zoo some networks see a fifth of the images
    ("batch_size", "lora_images", 1, 0),
    ("support_per_class", "images_train", 20, 50),  # splits are random: the rarest class may be half as frequent
    ("held_out_per_task", "networks_per_task", 1, 4),
    ("own_held_out", "own_runs", 1, 4),
    ("frontier_held_out", "frontier_networks", 1, 4),
    ("fewshot_backbone_classes", "fewshot_classes", 1, 1),
)


@dataclass(frozen=True)
class Profile:
    """Flat settings, each with its range; the defaults are the tutorial's."""

    profile: str = "tutorial"
    device: str = setting("cpu", "where tensors are; auto takes a GPU that is there", choices=DEVICES, chapter="machine")
    images_train: int = setting(2000, "training images of each alphabet", 70, 1_000_000, chapter="tasks")
    images_validation: int = setting(1000, "images to choose by", 10, 1_000_000)
    images_test: int = setting(5000, "images to report on", 10, 1_000_000)

    zoo_tasks: int = setting(4, "of the eight alphabets in distribution", 2, 8, chapter="zoo collection (notebook 01)")
    networks_per_task: int = setting(80, "trained for each alphabet", 16, 10_000_000)
    held_out_per_task: int = setting(16, "of those, kept away from every generator", 12, 1_000_000)
    survey_networks: int = setting(8, "networks for each of the other alphabets", 2, 1_000_000)
    epochs: int = setting(15, "passes over the training images", 1, 100_000)
    batch_size: int = setting(50, "images of a training step", 1, 1_000_000)
    learning_rate: float = setting(3e-3, "of Adam, in training", 1e-8, 100)

    latent_dim: int = setting(
        64, "numbers that stand for a network", 8, 100_000, multiple=8, chapter="variational autoencoder (notebook 02)"
    )
    vae_width: int = setting(512, "units of a hidden layer", 2, 1_000_000)
    vae_steps: int = setting(1200, "training steps", 3, 100_000_000)

    token_width: int = setting(64, "of the transformer", 4, 100_000, multiple=4, chapter="other encoders (notebook 02)")
    conv_width: int = setting(16, "channels of the convolutions", 1, 100_000)
    graph_width: int = setting(96, "of the messages between neurons", 2, 100_000)
    lora_rank: int = setting(4, "of the low-rank changes", 1, 4)

    encoder: str = setting("vae", "whose latents the flow lives in", choices=ENCODERS, chapter="flow (notebook 03)")
    flow_width: int = setting(256, "units of a hidden layer", 2, 1_000_000)
    flow_steps: int = setting(800, "training steps", 4, 100_000_000)
    flow_batch: int = setting(128, "latents of a training step", 4, 10_000_000)
    neuron_width: int = setting(64, "of the transformer over neurons", 4, 100_000, multiple=4)
    support_per_class: int = setting(5, "images of a class that describe a task", 1, 100_000)
    context_model: str = setting("trained", 'the frozen image encoder: "trained" here, or the name of a torchvision model')
    context_every: int = setting(2, "of the characters that the frozen image encoder may learn from", 1, 100)
    context_images: int = setting(60, "for each of them", 2, 1_000_000)
    context_steps: int = setting(400, "training steps of the frozen image encoder", 1, 100_000_000)
    samples_per_task: int = setting(64, "networks generated for each task", 6, 1_000_000)

    ood_classes: int = setting(
        1000, "training characters at most; there are fewer", 20, 100_000, chapter="networks for unseen alphabets (notebook 04)"
    )
    ood_images: int = setting(80, "for each of them", 20, 1_000_000)
    ood_body_steps: int = setting(2500, "pre-training steps of the shared body", 1, 100_000_000)
    ood_prototype_steps: int = setting(2000, "prototypical training steps of the shared body", 1, 100_000_000)
    ood_tasks: int = setting(160, "ten-class tasks in the zoo", 4, 10_000_000)
    ood_task_epochs: int = setting(5, "passes over the images of each", 1, 100_000)
    ood_flow_steps: int = setting(800, "training steps of the flow that imitates", 3, 100_000_000)
    ood_query_steps: int = setting(1200, "training steps on images outside the support", 1, 100_000_000)
    ood_draws: int = setting(8, "support sets for each held-out alphabet", 2, 100_000)
    ood_validation_episodes: int = setting(24, "to choose by", 2, 1_000_000)
    ood_test_images: int = setting(60, "for each class", 1, 90)  # of the real digits there are no more
    ood_reward_steps: int = setting(40, "steps that follow a reward", 1, 100_000_000)

    fewshot_classes: int = setting(
        1000, "training characters at most; there are fewer", 20, 100_000, chapter="heads for 5-way episodes (notebook 05)"
    )
    fewshot_images: int = setting(80, "for each of them: 40 of the support and 15 to be asked about", 55, 1_000_000)
    fewshot_backbone_classes: int = setting(240, "characters that the frozen image encoder was trained on", 2, 100_000)
    fewshot_backbone_steps: int = setting(1000, "training steps of the frozen image encoder", 1, 100_000_000)
    fewshot_heads: int = setting(1000, "many-shot heads that the flow imitates", 4, 10_000_000)
    fewshot_flow_steps: int = setting(600, "training steps of the flow that imitates", 1, 100_000_000)
    fewshot_query_steps: int = setting(500, "training steps on images outside the support", 1, 100_000_000)
    fewshot_caml_steps: int = setting(600, "training steps of the rival CAML", 1, 100_000_000)
    fewshot_episodes: int = setting(400, "for each domain", 2, 1_000_000)

    plane_networks: int = setting(
        400, "trained for each task", 40, 100_000_000, chapter="the plane of two weights (notebook 00)"
    )
    plane_flow_steps: int = setting(2500, "on the whole plane, a third of it on the folded one", 3, 100_000_000)
    plane_repeats: int = setting(4, "seeds that are run live", 2, 10_000)

    own_runs: int = setting(96, "fine-tuned networks", 7, 1_000_000, chapter="your own zoo (notebook 07)")
    own_held_out: int = setting(32, "of those, kept away from every generator", 3, 1_000_000)
    own_epochs: int = setting(5, "of fine-tuning", 1, 100_000)
    own_pretraining: int = setting(3, "epochs of the whole network", 1, 100_000)
    own_images_test: int = setting(2000, "images to report on", 10, 1_000_000)

    lora_base_steps: int = setting(
        1500, "pre-training steps of the base network", 1, 100_000_000, chapter="low-rank adaptation (study lora)"
    )
    lora_images: int = setting(2000, "training images of each alphabet", 100, 1_000_000)
    lora_validation_images: int = setting(500, "images to choose by", 10, 1_000_000)
    lora_test_images: int = setting(2000, "images to report on", 10, 1_000_000)
    lora_epochs: int = setting(10, "passes over the training images", 1, 100_000)

    frontier_tasks: int = setting(
        3, "of the eight alphabets in distribution", 2, 8, chapter="accuracy with diversity (study frontier)"
    )
    frontier_networks: int = setting(320, "for each task", 16, 10_000_000)
    frontier_held_out: int = setting(64, "of those, kept away from every generator", 12, 1_000_000)
    frontier_images: int = setting(300, "on which activations are matched", 2, 1_000_000)
    frontier_corrector_steps: int = setting(300, "training steps of the corrector", 1, 100_000_000)
    frontier_flow_steps: int = setting(300, "training steps of the flow", 1, 100_000_000)
    frontier_flow_width: int = setting(512, "units of a hidden layer", 2, 1_000_000)

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that do not go together."""
        check_fields(self)
        for smaller, larger, times, left in RELATIONS:
            low, high = getattr(self, smaller), getattr(self, larger)
            if times * low + left > high:
                most = max(0, (high - left) // times)
                raise ValueError(f"setting {smaller!r} may be at most {most} where {larger!r} is {high}, not {low}")

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
        networks_per_task=20,
        held_out_per_task=12,
        survey_networks=2,
        epochs=4,
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
        frontier_networks=24,
        frontier_held_out=12,
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
        ValueError: for an unknown profile, setting or encoder, a value of the wrong type or out of range, values that do not
            go together, a device that is not there, or sizes beyond this machine's memory.
    """
    profile = from_environment("FLOWN_PROFILE", profile)
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ValueError(f"there is no profile {shown(profile)}; choose one of {', '.join(PROFILES)}")
    if not isinstance(overrides, Mapping | None):
        raise ValueError(f"overrides take the names of settings with their values, not {shown(overrides)}")
    known = rules(Profile)
    for name in overrides or {}:
        if name not in known:
            raise ValueError(f"there is no setting {shown(name)}; see them all by: python -m flownlib settings")
    settings = replace(PROFILES[profile], **(overrides or {}))
    if settings.context_model not in ("trained", PROFILES[profile].context_model):
        check_torchvision_model(settings.context_model)
    check_device(settings.device)
    require_memory(profile_memory(settings))
    return settings


def check_torchvision_model(name: str) -> None:
    """Refuse what is no image classifier of torchvision's."""
    from torchvision import models  # here, for importing it takes seconds

    if name not in models.list_models(module=models):
        raise ValueError(f"setting 'context_model' takes trained or the name of a torchvision classifier, not {shown(name)}")
