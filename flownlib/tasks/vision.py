"""Tasks from images of the world: scikit-learn's handwritten digits (shipped) and torchvision's data sets (on disk)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# torchvision and scikit-learn are imported where they are used: that takes seconds, which every worker process would pay
# name: (torchvision class, arguments of its training part, arguments of its test part)
VISION: dict[str, tuple[str, dict, dict]] = {
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashion_mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "usps": ("USPS", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}),
}


def handwritten_digits() -> tuple[Tensor, Tensor]:
    """1,797 real handwritten digits (UCI optical digits), 8 × 8 enlarged to 28 × 28: uint8 [n, 1, 28, 28], int64 [n]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16
    # 8 × 8 becomes 20 × 20 inside a margin of 4, the framing that the glyph tasks have
    large = F.pad(F.interpolate(small, (20, 20), mode="bicubic", align_corners=False), (4, 4, 4, 4))
    return (large.clamp(0, 1) * 255).round().to(torch.uint8), torch.as_tensor(digits.target, dtype=torch.int64)


def data_root() -> Path:
    """Where torchvision data sets lie: the environment variable FLOWN_DATA, else ~/.cache/flown-data."""
    return Path(os.environ.get("FLOWN_DATA") or Path.home() / ".cache" / "flown-data")


def vision_images(name: str, root: Path | None = None, download: bool = False) -> tuple[Tensor, Tensor]:
    """All images of a torchvision data set, training part first: uint8 [n, c, h, w], int64 [n].

    Raises:
        ValueError: if the name is unknown, or the data set is not on disk and `download` is False.
    """
    if name not in VISION:
        raise ValueError(f"there is no data set {name!r}; choose one of {', '.join(VISION)}")
    from torchvision import datasets

    kind, *parts = VISION[name]
    root = root or data_root()
    images, labels = [], []
    for part in parts:
        try:
            data = getattr(datasets, kind)(str(root), download=download, **part)
        except RuntimeError as error:
            raise ValueError(
                f"{name} was not found under {root} ({error}); put it there, or call with download=True on a machine "
                "with internet access."
            ) from None
        x = torch.as_tensor(data.data)
        x = x[:, None] if x.dim() == 3 else x
        images.append(x.permute(0, 3, 1, 2) if x.shape[-1] == 3 and x.shape[1] != 3 else x)
        labels.append(torch.as_tensor(getattr(data, "targets", getattr(data, "labels", None)), dtype=torch.int64))
    return torch.cat(images).contiguous(), torch.cat(labels)
