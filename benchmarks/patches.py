"""What inference by patches takes of convolutional networks, and that it answers as they do.

    OMP_NUM_THREADS=1 python benchmarks/patches.py > benchmarks/patches.json

Random weights, as neither memory nor arithmetic depends on them. MobileNetV2 and ResNet-18 as
transformers builds them, at 8 bits between layers; within a fifth of the products done again.
"""

import json
import platform
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from mpq.network.patches import PatchRules, find_patches, largest_difference


def main() -> None:
    rows = [row(name, size, streamed) for name, size in CASES for streamed in (False, True)]
    record = {
        "command": "python benchmarks/patches.py",
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        "rows": rows,
    }
    print(json.dumps(record, indent=1))


def mobilenet(width: float) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    # Padding of the convolutions' own, as microcontrollers do it: no tensors for borders.
    config = MobileNetV2Config(depth_multiplier=width, tf_padding=False)
    net: nn.Module = MobileNetV2ForImageClassification(config)
    return net


def resnet18() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    net: nn.Module = ResNetForImageClassification(config)
    return net


CASES = (("MobileNetV2 x 0.35", 144), ("MobileNetV2", 224), ("ResNet-18", 224))
"""Networks, and rows and columns of their images."""


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "ResNet-18":
        return resnet18().eval()
    return mobilenet(0.35 if "0.35" in name else 1.0).eval()


def row(name: str, size: int, is_streamed: bool) -> dict[str, Any]:
    """The best plan, and how far off it is in float64."""
    net = build(name).double()
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    found = find_patches(net, x, PatchRules(is_input_streamed=is_streamed))
    assert found.best is not None
    return {
        "network": name,
        "size": size,
        **found.best.to_dict(),
        "largest_difference": largest_difference(net, x, found.best),
        "num_plans": len(found.plans),
        "num_left_out": found.num_left_out,
    }


if __name__ == "__main__":
    main()
