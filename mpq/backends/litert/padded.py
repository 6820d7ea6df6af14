"""Layers with a forward of their own that pad what they read, and are torch's layer otherwise."""

from typing import Final

import torch
from torch import Tensor, nn

from mpq.network.inner_call import InnerCall
from mpq.network.own_forward import Again

ERRORS: Final = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
"""What a forward says of numbers that it did not expect."""


def only_pads(module: nn.Module) -> bool:
    """Whether a layer adds zeros to what it reads at most, and gives what torch's operator gives.

    Such a layer is what its operator in the file is: zero is a code of every input, and what was
    rounded before zeros are added is what is rounded behind. It is run on drawn numbers and asked
    what it computes, as in ``has_own_forward``; its class may be called anything.

    Args:
        module: A linear layer or a convolution of one or two dimensions; left as it is.
    """
    x = _drawn(module)
    if x is None:
        return False
    given = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
    try:
        with torch.random.fork_rng(devices=[]):
            call = InnerCall.of(Again(module, (x,), {}), given)
    except ERRORS:
        return False
    if call is None or call.bias is not given.get("bias"):
        return False
    return torch.equal(_sorted(call.read), _sorted(x))


def _drawn(module: nn.Module) -> Tensor | None:
    """Numbers of both signs, none 0, of a shape that a layer reads; ``None`` for other kinds."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Linear):
        shape = [3, module.in_features]
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        sizes = zip(module.kernel_size, module.dilation, strict=True)
        # Of an odd length, so that what a stride leaves over is there as well.
        shape = [2, module.in_channels, *(2 * (k - 1) * d + 5 for k, d in sizes)]
    else:
        return None
    draws = torch.Generator().manual_seed(0)
    signs = torch.randint(2, shape, generator=draws) * 2 - 1
    return (signs * (1 + torch.rand(shape, generator=draws))).to(weight)


def _sorted(x: Tensor) -> Tensor:
    """Its numbers but for zeros."""
    return x[x != 0].sort().values
