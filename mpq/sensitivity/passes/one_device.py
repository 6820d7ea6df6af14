"""What is known of layers that may lie on several devices, together."""

from collections.abc import Iterable

import torch
from torch import Tensor


def on_one_device(layers: Iterable[Tensor]) -> Tensor:
    """``[L, ...]`` of numbers of one shape for each layer, on the device of the first.

    So one transfer to the processor takes all of them, and a pass does not wait for one a layer.
    """
    first, *others = layers
    return torch.stack([first, *(x.to(first.device) for x in others)])
