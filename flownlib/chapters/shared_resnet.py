"""torchvision's ResNet-18, pre-trained on one alphabet: what notebook 07 fine-tunes, and the study of adapted layers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flownlib.extensions.modules import ModuleClassifier
from flownlib.harness.cache import cached_folder
from flownlib.harness.devices import device_of
from flownlib.harness.folders import disk_trouble
from flownlib.harness.profiles import Profile
from flownlib.optimisation import minimise, seeded_module
from flownlib.scoring import Split, Task
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Example:
    """Which alphabet the network was pre-trained on and which it is fine-tuned for, and which tensors change."""

    before: str
    task: str
    patterns: tuple[str, ...]
    learning_rate: float  # the best of 0.001 to 0.1 by validation accuracy on seed 0


def split_sizes(settings: Profile) -> SplitSizes:
    """Images in each split."""
    return SplitSizes(settings.images_train, settings.images_validation, settings.own_images_test)


def colour_task(name: str, settings: Profile) -> Task:
    """An alphabet as a network for photographs takes it: three equal channels of 32 × 32."""
    task = load_task(name, split_sizes(settings))

    def coloured(split: Split) -> Split:
        x = F.pad(split.x, (2, 2, 2, 2), value=float(split.x.min()))
        return Split(x.expand(-1, 3, -1, -1).contiguous(), split.y)

    splits = map(coloured, (task.train, task.validation, task.test))
    return Task(task.name, task.num_classes, *splits).to(device_of(settings))


def resnet() -> nn.Module:
    """torchvision's ResNet-18 with ten outputs."""
    from torchvision.models import resnet18  # here, for importing it takes seconds

    return resnet18(num_classes=10)


def base_checkpoint(settings: Profile, seed: int, example: Example) -> Path:
    """The file of the pre-trained network, a whole state dict."""
    epochs = settings.own_pretraining
    key = {"task": example.before, "images": asdict(split_sizes(settings)), "epochs": epochs, "seed": seed}

    def write(folder: Path) -> None:
        network = pretrained(colour_task(example.before, settings).train, epochs, seed)
        with disk_trouble(folder):
            save_file(network.state_dict(), folder / "resnet18.safetensors")

    return cached_folder("own-base", key, write) / "resnet18.safetensors"


def pretrained(images: Split, epochs: int, seed: int) -> nn.Module:
    """A ResNet-18 trained as usual, all of it, batch norms in training mode."""
    network = seeded_module(seed, resnet).train().to(images.x.device)
    order = minibatch_orders([seed], len(images), Training(epochs, 50))[0]
    batches = iter(order)

    def loss() -> Tensor:
        rows = next(batches)
        return F.cross_entropy(network(images.x[rows]), images.y[rows])

    minimise(loss, network, len(order), 1e-3, "pre-training", weight_decay=0.0, clip=math.inf, constant=True)
    return network.eval().cpu()  # to a file


def own_model(base: Path, patterns: tuple[str, ...]) -> ModuleClassifier:
    """The ResNet-18 in a file as a classifier of which the tensors that match are the weights."""

    def build() -> nn.Module:
        network = resnet()
        network.load_state_dict(load_file(base))
        return network

    return ModuleClassifier("resnet18", IMAGE, build, patterns)
