"""The network of the demo: small, but with every kind of layer a search has to weigh."""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from torch import Tensor, nn


def _conv_norm(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps height and width at stride 1, and its batch normalisation."""
    # Without a bias: the normalisation takes off each channel's mean, and a bias with it.
    conv = nn.Conv2d(
        channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels_out)))


@final
class PlainBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, as in ResNet.

    Args:
        channels_in: Number of channels of the input.
        channels_out: Number of channels of the output; where it differs, the shortcut is a 1x1
            convolution.
        stride: Step of the first convolution and of the shortcut, in pixels; above 1 only
            where the width changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv_norm(channels_in, channels_out, 3, stride)
        self.relu1 = nn.ReLU()
        self.second = _conv_norm(channels_out, channels_out, 3)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out
            else _conv_norm(channels_in, channels_out, 1, stride)
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        y = self.second(self.relu1(self.first(x)))
        return self.relu2(self.shortcut(x) + y)  # type: ignore[no-any-return]


@final
class InvertedBlock(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1, as in MobileNetV2.

    Args:
        channels_in: Number of channels of the input.
        channels_out: Number of channels of the output; the input is added where the shapes agree.
        hidden: Width in between, the number of depthwise filters.
        stride: Step of the depthwise convolution, in pixels.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = _conv_norm(channels_in, hidden, 1)
        self.relu1 = nn.ReLU()
        self.depthwise = _conv_norm(hidden, hidden, 3, stride, groups=hidden)
        self.relu2 = nn.ReLU()
        # No ReLU behind it: in few channels that loses what the block has computed (Sandler et al.
        # 2018, MobileNetV2, arXiv:1801.04381).
        self.project = _conv_norm(hidden, channels_out, 1)
        self.is_residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        y: Tensor = self.project(self.relu2(self.depthwise(self.relu1(self.expand(x)))))
        return x + y if self.is_residual else y


@final
class DigitsNet(nn.Module):
    """A residual network for 8x8 digits: 17 convolutions, one linear layer, 73,674 parameters.

    Its layers have from 144 to 9,216 weights, and sums of 9 (depthwise) to 288 products, so that
    no single precision suits them all. The blocks halve the image twice, from 8x8 to 2x2 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(1, 16, 3)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(
            PlainBlock(16, 16),
            PlainBlock(16, 32, stride=2),
            InvertedBlock(32, 32, hidden=96),
            PlainBlock(32, 32),
            InvertedBlock(32, 48, hidden=128, stride=2),
            InvertedBlock(48, 48, hidden=144),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of normalised images ``[N, 1, 8, 8]``."""
        features = self.blocks(self.relu(self.stem(images)))
        return self.head(self.flatten(self.pool(features)))  # type: ignore[no-any-return]
