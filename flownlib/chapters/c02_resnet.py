"""The study of low-rank adaptation by layer name: the last stage of a torchvision ResNet-18, adapted to other alphabets.

The network has been pre-trained on one alphabet. What lies before the adapted stage is frozen and runs once for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flownlib.chapters.c02_low_rank import RANKS, Comparison, compare
from flownlib.chapters.shared_resnet import Example, base_checkpoint, colour_task, own_model
from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.extensions.lora import LoRA
from flownlib.harness.profiles import Profile
from flownlib.speed.plan import Training

MATRICES = ("layer4.*.conv?.weight", "layer4.*.downsample.0.weight")
WHOLE = ("layer4.*.bn?.*", "layer4.*.downsample.1.*", "fc.*")
BEFORE, ALPHABETS = "latin", ("greek", "cyrillic", "hebrew")
TUNED_ON = 1  # of the alphabets
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def stage(settings: Profile, seed: int) -> SuffixClassifier:
    """The pre-trained network; its weights are the last stage and the head."""
    example = Example(BEFORE, BEFORE, ("layer4.*", "fc.*"), 0.0)
    return SuffixClassifier.of(own_model(base_checkpoint(settings, seed, example), example.patterns))


def without_head(model: SuffixClassifier, seed: int) -> Tensor:
    """The pre-trained weights [p] with zeros for the head, since the classes are others now."""
    base = model.initialise(1, torch.Generator().manual_seed(seed))[0]
    for name, place in model.layout.slices().items():
        if name.startswith("fc."):
            base[place] = 0.0
    return base


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """One training seed: the network is pre-trained anew; raw accuracies and paired gains, one value an alphabet."""
    torch.set_num_threads(1)
    model, training = stage(settings, seed), Training(settings.own_epochs, settings.batch_size)
    base, tasks = without_head(model, seed), [model.task(colour_task(name, settings)) for name in ALPHABETS]
    ranks = {rank: LoRA.of(model.layout, base, rank, MATRICES, WHOLE) for rank in RANKS}
    by_rank = {0: LoRA.of(model.layout, base, 0, (), ("fc.*",))} | ranks
    tuning, comparison = (Comparison.of(model, base, part, training, seed) for part in (tasks[:TUNED_ON], tasks))
    return compare(tuning, comparison, by_rank, LEARNING_RATES, {"layers": "layer4"})
