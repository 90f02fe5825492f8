"""The study of low-rank adaptation by layer name: the last stage of a torchvision ResNet-18, adapted to other alphabets.

The network has been pre-trained on one alphabet. What lies before the adapted stage is frozen and runs once for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flownlib.chapters.shared_resnet import Example, base_checkpoint, own_model
from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.harness.profiles import Profile

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
