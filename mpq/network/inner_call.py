"""The one operator that a layer's own forward calls with its weight, and what that reads."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mpq.network.own_forward import Again

_CONVOLUTION: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
OPERATORS: Final[Mapping[Any, tuple[type[nn.Module], tuple[str, ...]]]] = {
    F.linear: (nn.Linear, _CONVOLUTION[:3]),
    F.conv1d: (nn.Conv1d, _CONVOLUTION),
    F.conv2d: (nn.Conv2d, _CONVOLUTION),
    F.conv3d: (nn.Conv3d, _CONVOLUTION),
}
"""Torch's functions, the layers that are one of them, and their arguments in order."""
_DEFAULTS: Final = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@final
@dataclass(frozen=True, eq=False)
class InnerCall:
    """What a layer with a forward of its own calls: torch's operator of its kind, with its weight.

    Such a forward makes something of its input (pads it, scales it) and hands that on; rows of its
    weight meet what the operator reads, as in torch's own layer.

    Args:
        read: What the operator reads.
        bias: Its bias.
        layer_module: The layer's parameters, sliding as the call does.
    """

    read: Tensor
    bias: Tensor | None
    layer_module: nn.Module

    @classmethod
    def of(cls, again: Again, replaced: Mapping[str, Tensor] | None = None) -> Self | None:
        """That of one call; ``None`` where there is none, or several, or more is done behind it.

        Args:
            again: The call, which is computed once more.
            replaced: Parameters by name that others take the place of.
        """
        layer_module = again.layer_module
        weight = layer_module.weight
        assert isinstance(weight, Tensor)
        # A tensor of its own, by which the operator is known.
        given = {"weight": weight.detach().view_as(weight), **(replaced or {})}
        calls = _Calls(given["weight"])
        with torch.no_grad(), calls:
            output = again.output(given)
        if again.with_hooks or len(calls.found) != 1:
            return None
        (call,) = calls.found
        is_all = call.output is output and output._version == call.version
        if not is_all or not isinstance(layer_module, call.kind):
            return None
        return cls(call.named["input"], call.named["bias"], _sliding(layer_module, call.named))


def _sliding(layer_module: nn.Module, named: Mapping[str, Any]) -> nn.Module:
    """The layer with a call's stride, padding, dilation and groups."""
    found: Any = copy(layer_module)
    if isinstance(layer_module, nn.Linear):
        return layer_module
    for option in ("stride", "padding", "dilation"):
        setattr(found, option, _each(named[option], len(found.kernel_size)))
    found.groups, found.padding_mode = named["groups"], "zeros"
    return found  # type: ignore[no-any-return]


def _each(value: Any, axes: int) -> Any:
    if isinstance(value, str):
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


@final
@dataclass(frozen=True, eq=False)
class _Call:
    kind: type[nn.Module]
    named: Mapping[str, Any]
    output: Tensor
    version: int
    """Of the output when the operator gave it: later changes in place raise it."""


@final
@dataclass(eq=False)
class _Calls(TorchFunctionMode):
    """Keeps the calls of operators with a weight."""

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
        output = function(*args, **(kwargs or {}))
        if function in OPERATORS:
            kind, names = OPERATORS[function]
            named = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **(kwargs or {})}
            if named["weight"] is self.weight:
                self.found.append(_Call(kind, named, output, output._version))
        return output
