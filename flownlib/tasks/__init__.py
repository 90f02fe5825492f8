"""What is classified: glyph alphabets, random glyph tasks, handwritten digits, torchvision data sets.

`load_task` and `glyph_pool` are the two doors; both are deterministic for a seed and cached on disk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flownlib.harness.cache import cached
from flownlib.harness.settings import shown
from flownlib.scoring import Task
from flownlib.tasks import glyphs, vision
from flownlib.tasks.base import SplitSizes, make_task
from flownlib.tasks.glyphs import ALPHABETS
from flownlib.weights import Artifact

DIGITS = "digits_handwritten"
DIGITS_SIZES = SplitSizes(600, 200, 997)  # all of the 1,797 images there are


def task_names() -> tuple[str, ...]:
    """Every name that `load_task` knows."""
    return (*ALPHABETS, DIGITS, *vision.VISION)


def check_task(name: str) -> None:
    """Refuse a name that `load_task` does not know.

    Raises:
        ValueError: naming all that it knows.
    """
    if name not in task_names():
        raise ValueError(f"there is no task {shown(name)}; choose one of {', '.join(task_names())}")


def split_sizes(name: str, sizes: SplitSizes) -> SplitSizes:
    """The sizes of a task's splits: those asked for, but real digits keep their own, since only 1,797 images exist."""
    return DIGITS_SIZES if name == DIGITS else sizes


def load_task(name: str, sizes: SplitSizes = SplitSizes(), seed: int = 0, download: bool = False) -> Task:
    """A task by name, in splits of `split_sizes`.

    Raises:
        ValueError: if the name is unknown or the data are missing.
    """
    check_task(name)
    sizes = split_sizes(name, sizes)
    if name in ALPHABETS:
        text, strength = ALPHABETS[name]
        per_class = -(-sizes.total // len(text))
        images = glyph_pool(text, per_class, seed, strength)
        labels = torch.arange(len(text)).repeat_interleave(per_class)
        return make_task(name, images.flatten(0, 1)[:, None], labels, sizes, seed)
    if name == DIGITS:
        return make_task(name, *vision.handwritten_digits(), sizes, seed)
    return make_task(name, *vision.vision_images(name, download=download), sizes, seed)


def glyph_pool(text: str, per_class: int, seed: int = 0, strength: float = 1.0) -> Tensor:
    """Images of many characters, from which few-shot episodes and random tasks draw: uint8 [len(text), per_class, 28, 28]."""
    settings = {"text": text, "per_class": per_class, "seed": seed, "strength": strength}

    def build() -> Artifact:
        return Artifact({"images": glyphs.glyph_images(text, per_class, seed, strength)}, settings)

    return cached("glyphs", settings, build).tensors["images"]
