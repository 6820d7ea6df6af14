"""Whether a tensor holds numbers only."""

import torch
from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite.

    By the smallest and the largest, which are NaN where any number is: one pass that writes
    nothing, where ``isfinite`` writes two tensors.
    """
    if values.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return bool(values.isfinite().all())  # such as complex numbers, which have no order
    if not values.numel():
        return True
    least, most = values.detach().aminmax()
    return bool(least.isfinite() & most.isfinite())
