"""Torch modules as classifiers that several tests share: a small residual network (He et al. 2016), torchvision's ResNet-18."""

from __future__ import annotations

from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from flownlib.extensions.modules import ModuleClassifier


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the shortcut is the identity where the shape stays."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] → [b, out_channels, h / stride, w / stride]."""
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def residual_network(channels: int, width: int, blocks: int, classes: int) -> nn.Sequential:
    """A strided convolution, residual blocks, the mean over positions and a linear head.

    The second half of the blocks has twice as many channels on a quarter of the positions.
    """
    widths = [width] + [width * (1 + (2 * i >= blocks)) for i in range(blocks)]
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *(ResidualBlock(before, after, after // before) for before, after in pairs),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    )


def residual_classifier(
    width: int = 8, blocks: int = 2, image_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10
) -> ModuleClassifier:
    """A residual network whose weights are all of its tensors, the batch norms' running statistics included.

    By default 5,266 numbers on 28 × 28 × 1, of which 144 are running statistics.
    """
    build = partial(residual_network, image_shape[0], width, blocks, classes)
    return ModuleClassifier(f"residual_{width}x{blocks}", image_shape, build, statistics=True)


def resnet18(patterns: tuple[str, ...] = ("*",), statistics: bool = False) -> ModuleClassifier:
    """torchvision's ResNet-18 on images 32 wide, of which the tensors that match are the weights."""
    build = partial(torchvision.models.resnet18, num_classes=10)
    return ModuleClassifier("resnet18", (3, 32, 32), build, patterns, statistics)
