"""Which parameter a tensor of a forward pass is, with its axes in which order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.same_start import inputs_as_given, own_inputs

_SAME = frozenset({"alias", "detach", "contiguous", "lift_fresh", "clone"})


@final
@dataclass(frozen=True)
class View:
    """A parameter as an operation reads it.

    Args:
        name: The first name of the parameter.
        axes: For every axis of the tensor the parameter's; ``None``: one that was added.
    """

    name: str
    axes: tuple[int | None, ...]

    @property
    def matrix_axes(self) -> tuple[int, int] | None:
        """The parameter's axes of a matrix, or of one that is there for every example."""
        inner, outer = self.axes[-2:] if len(self.axes) > 1 else (None, None)
        if inner is None or outer is None or any(axis is not None for axis in self.axes[:-2]):
            return None
        return inner, outer

    @property
    def vector_axis(self) -> int | None:
        """The tensor's only axis that is one of the parameter's; ``None`` of a matrix."""
        own = [i for i, axis in enumerate(self.axes) if axis is not None]
        return own[0] if len(own) == 1 else None


@final
class ParameterViews:
    """Parameters and what torch's operations make of them without changing a number.

    Tensors are known by identity, and kept alive for it.

    Args:
        module: Whose parameters they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self._known: dict[int, tuple[Tensor, View]] = {}
        for name, parameter in module.named_parameters():
            self._add(parameter, View(name, tuple(range(parameter.ndim))))

    def of(self, value: Any) -> View | None:
        """The parameter that a value is; ``None``: none, or a part or a function of one."""
        found = self._known.get(id(value))
        return None if found is None else found[1]

    def follow(self, operation: str, args: Sequence[Any], result: Any) -> bool:
        """Whether an operation turned a parameter's axes around, and nothing else; remembers it."""
        view = self.of(args[0]) if args else None
        if view is None or not isinstance(result, Tensor):
            return False
        axes = _turned(operation, view.axes, args, result)
        if axes is None:
            return False
        self._add(result, View(view.name, axes))
        return True

    def _add(self, tensor: Tensor, view: View) -> None:
        self._known[id(tensor)] = (tensor, view)


def _turned(
    operation: str, axes: tuple[int | None, ...], args: Sequence[Any], result: Tensor
) -> tuple[int | None, ...] | None:
    count = len(axes)
    if operation in _SAME:
        return axes
    if operation == "t":
        return axes[::-1]
    if operation == "transpose":
        order = list(axes)
        first, second = args[1] % count, args[2] % count
        order[first], order[second] = order[second], order[first]
        return tuple(order)
    if operation == "permute":
        return tuple(axes[i % count] for i in args[1])
    if operation == "unsqueeze":
        place = args[1] % (count + 1)
        return (*axes[:place], None, *axes[place:])
    if operation == "expand":  # torch multiplies batches with a copy of a matrix for each
        added = result.ndim - count
        sizes = zip(args[0].shape, result.shape[added:], strict=True)
        # An axis of size 1 is not there any more once it is repeated.
        kept = (
            axis if before == after else None
            for axis, (before, after) in zip(axes, sizes, strict=True)
        )
        return (*[None] * added, *kept)
    if operation == "slice" and result.shape == args[0].shape:
        return axes
    if operation in ("view", "_unsafe_view", "reshape") and args[0].numel() > 1:
        return _reshaped(axes, args[0], result)
    return None


def _reshaped(
    axes: tuple[int | None, ...], before: Tensor, after: Tensor
) -> tuple[int | None, ...] | None:
    """A reshape that adds or removes axes of size 1 alone."""
    if before.shape == after.shape:
        return axes
    kept = [axis for axis, size in zip(axes, before.shape, strict=True) if size != 1]
    if [size for size in after.shape if size != 1] != [size for size in before.shape if size != 1]:
        return None
    left = iter(kept)
    return tuple(None if size == 1 else next(left) for size in after.shape)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """``nn.MultiheadAttention`` as operations, where torch has a single one for it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def run_under(mode: Any, module: nn.Module, batch: Batch) -> Any:
    """A forward pass without gradients, seen by a dispatch mode; its output.

    Args:
        mode: A ``TorchDispatchMode``.
        module: In evaluation mode.
        batch: On the module's device; the pass reads a copy of it.
    """
    args, kwargs = own_inputs(batch.args, batch.kwargs)
    with torch.no_grad(), _without_fast_path(), inputs_as_given(), mode:
        return module(*args, **kwargs)


LAYERS: Final = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "convolution": (0, 1)}
"""Operations that a layer may be, and the places of its input and its weight among arguments."""
