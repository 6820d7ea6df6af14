"""Layers whose output channels may come in any order, as other layers alone read them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mpq.network.arguments import tensors_in
from mpq.network.batch import Batch
from mpq.network.modules import device_of, hooks
from mpq.network.randomness import random_state_kept

_BY_CHANNEL: Final = frozenset(
    (
        "relu", "relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_", "selu", "celu", "sigmoid",
        "tanh", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_",
        "softplus", "softsign", "logsigmoid", "tanhshrink", "hardshrink", "softshrink", "threshold",
        "dropout", "clamp", "clamp_", "clamp_min", "clamp_max", "clip", "abs", "neg", "exp", "sqrt",
        "square", "pow", "reciprocal", "contiguous", "clone", "float", "__mul__", "__rmul__", "mul",
        "__add__", "__radd__", "add", "__sub__", "sub", "__truediv__", "div", "__neg__", "__pow__",
    )
)  # fmt: skip
"""Names of functions that, of one tensor and of numbers, treat all channels alike."""
_ASKING: Final = frozenset(("__get__", "size", "dim", "ndimension", "numel", "is_contiguous"))
"""Functions that read a tensor's shape, or what it is of."""


@random_state_kept()
def channel_readers(
    module: nn.Module, batch: Batch, names: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Layers that alone read another one's output, number by number.

    Between them are functions of single numbers alone (activation functions, products with a
    number). All else ends a layer's freedom: sums with other tensors, norms, pooling, reshapes, an
    output of the network. So it does where a reader reads something else in another call.

    Args:
        module: Runs the batch once.
        batch: An example or some.
        names: Of layers that make or read channels: linear layers, and convolutions.

    Returns:
        Layer name to its readers; of those whose channels may come in another order.
    """
    parts = {name: module.get_submodule(name) for name in names}
    seen, handles = _Seen({name: type(part) for name, part in parts.items()}), []
    for name, part in parts.items():
        handles += [
            part.register_forward_pre_hook(partial(seen.begin, name), with_kwargs=True),
            part.register_forward_hook(partial(seen.end, name), always_call=True),
        ]
    batch = batch.to(device_of(module))
    with hooks(handles), torch.no_grad(), _Following(seen):
        output = module(*batch.args, **batch.kwargs)
    seen.close(tensors_in(output))
    found = {name: tuple(dict.fromkeys(readers)) for name, readers in seen.readers.items()}
    return {
        name: readers
        for name, readers in found.items()
        if name not in seen.ended and all(set(seen.read[x]) == {name} for x in readers)
    }


@final
@dataclass
class _Seen:
    """What a pass showed.

    Args:
        kinds: Layer name to its class.
        made: The layer whose channels a tensor has.
        readers: Layer name to what read its channels.
        read: Layer name to whose channels each of its calls read; ``None``: no layer's.
        ended: Layers whose channels something else read.
        depth: Layers that are running.
    """

    kinds: Mapping[str, type[nn.Module]]
    made: Any = field(default_factory=WeakTensorKeyDictionary)
    readers: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, list[str | None]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    depth: int = 0

    def begin(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A layer reads these."""
        given = tensors_in([*args, *kwargs.values()])
        source = self.made.get(given[0]) if len(given) == 1 else None
        # A linear layer reads the last axis, and not that of a convolution's channels.
        source = source if source and self.kinds[source] is self.kinds[name] else None
        self.read.setdefault(name, []).append(source)
        if source is None:
            self.close(given)
        else:
            self.readers.setdefault(source, []).append(name)
        self.depth += 1

    def end(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        """A layer made that."""
        self.depth -= 1
        if isinstance(output, Tensor):
            self.made[output] = name

    def close(self, tensors: Collection[Tensor]) -> None:
        """Something reads these that knows channels by their places."""
        self.ended |= {self.made[x] for x in tensors if x in self.made}

    def called(self, func: Any, given: Collection[Tensor], result: Any) -> None:
        """A function between layers has read tensors."""
        known = [x for x in given if x in self.made]
        name = str(getattr(func, "__name__", ""))
        if not known or (name in _ASKING and not tensors_in(result)):
            return
        is_alike = name in _BY_CHANNEL and len(given) == 1 and isinstance(result, Tensor)
        if is_alike and result.shape == known[0].shape:
            self.made[result] = self.made[known[0]]
        else:
            self.close(known)


@final
class _Following(TorchFunctionMode):
    """Tells what functions between layers read."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function."""
        kwargs = kwargs or {}
        given = tensors_in([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        if not self._seen.depth:
            self._seen.called(func, given, result)
        return result
