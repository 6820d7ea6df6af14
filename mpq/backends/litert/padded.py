"""Layers with a forward of their own that pad what they read, and are torch's layer otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpq.network.own_forward import Again

OPERATORS: Final = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d)
"""Functions that become an operator of the file, which has a weight and a bias."""
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
    calls = _Calls(given["weight"])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), calls:
            output = Again(module, (x,), {}).output(given)
    except ERRORS:
        return False
    if len(calls.found) != 1:
        return False
    (call,) = calls.found
    is_whole = call.output is output and call.bias is given.get("bias")
    return is_whole and torch.equal(_sorted(call.read), _sorted(x))


@final
@dataclass(frozen=True, eq=False)
class _Call:
    read: Tensor
    bias: Tensor | None
    output: Tensor


@final
@dataclass(eq=False)
class _Calls(TorchFunctionMode):
    """Keeps calls of operators with a weight."""

    weight: Tensor
    found: list[_Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs a function."""
        named = dict(kwargs or {})
        output = function(*args, **named)
        if function in OPERATORS:
            told = dict(zip(("input", "weight", "bias"), args, strict=False)) | named
            if told["weight"] is self.weight:
                self.found.append(_Call(told["input"], told.get("bias"), output))
        return output


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
