"""EfficientNet-Lite0 and photographs to measure it on, for `benchmarks/deployment.py`.

Weights and images are not a part of this project: they come from `loaders.py`. 49
convolutions of a class that pads by itself, and one linear layer: 4.65 M parameters.

Reference: Tan, Le (2019), EfficientNet: rethinking model scaling for convolutional neural networks,
ICML. arXiv:1905.11946. (Its "lite" form, without squeeze and excitation, has no paper.)
"""

from collections.abc import Iterator

from loaders import loader
from torch import Tensor, nn


def make_net() -> nn.Module:
    """In evaluation mode, float32."""
    net: nn.Module = loader("efficientnet_lite0").model()
    return net


def calibration() -> Iterator[Tensor]:
    """Sixteen photographs ``[8, 3, 224, 224]``, each of another of ImageNet's classes."""
    yield from loader("efficientnet_lite0").calibration(16, 8)


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """Sixty-four validation photographs with their classes, of ten classes."""
    yield from loader("efficientnet_lite0").held_out(64, 16)
