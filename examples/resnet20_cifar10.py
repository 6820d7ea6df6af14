"""ResNet-20 on CIFAR-10: what a user brings to mpq, a model and two functions that yield data.

Give mpq the trained weights with ``--weights ../shared/data/cifar10/resnet20.safetensors``; run
this file to measure the network as it is, in float. The environment variable ``MPQ_DATA`` names
the data folder where it is not ``../shared/data``.

Reference: He et al. (2016), Deep residual learning for image recognition, CVPR, section 4.2.
arXiv:1512.03385.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

DATA = Path(
    os.environ.get("MPQ_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)
BATCH_SIZE = 128
# Mean and standard deviation of ImageNet's red, green and blue: the network was trained with them.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Make a block that divides height and width by ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A of the paper: drop pixels; half of the new channels, all zero, on each side."""
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class ResNet20(nn.Module):
    """Three stages of three blocks, with 16, 32 and 64 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``[N, 3, 32, 32]`` to logits ``[N, num_classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride),
        BasicBlock(out_channels, out_channels, stride=1),
        BasicBlock(out_channels, out_channels, stride=1),
    )


def make_net() -> ResNet20:
    """Return the network in eval mode with random weights; the trained ones are in a file."""
    return ResNet20().eval()


def calibration() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield 2,048 training images: ``x [N, 3, 32, 32]`` float32, ``y [N]`` int64."""
    return _batches("calib_train_lossless_2048.npz", num_images=2048)


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first 1,017 test images, in the form of :func:`calibration`."""
    return _batches("test_lossless_1017.npz", num_images=1017)


def _batches(file_name: str, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    with np.load(DATA / "cifar10" / file_name) as arrays:
        pixels = torch.from_numpy(arrays["x"][:num_images])  # [N, 32, 32, 3]
        classes = torch.from_numpy(arrays["y"][:num_images]).long()
    pixels = pixels.permute(0, 3, 1, 2).contiguous()  # [N, 3, 32, 32]
    for x, y in zip(torch.split(pixels, BATCH_SIZE), torch.split(classes, BATCH_SIZE), strict=True):
        yield (x.float() / 255 - MEAN) / STD, y


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return the fraction of images whose largest logit is that of their class."""
    return torch.cat([model(x).argmax(1) == y for x, y in batches]).double().mean().item()


if __name__ == "__main__":
    net = make_net()
    load_model(net, DATA / "cifar10" / "resnet20.safetensors")
    print(json.dumps({"model": "resnet20_cifar10", "accuracy": accuracy(net, held_out())}))
