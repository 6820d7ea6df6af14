"""What a layer reads, among all that it is called with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a call reads: the first one of floating-point numbers, else the first one.

    Args:
        args: By position, as a hook gets them.
        kwargs: By name.

    Returns:
        ``None`` if the call has no tensor, as a table of positions that is given a shape.
    """
    leaves, _ = tree_flatten((args, dict(kwargs)))
    index = _place(leaves)
    found: Tensor | None = None if index is None else leaves[index]
    return found


def read_by(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """As ``input_of``, but an index per position of the output where a call has no tensor."""
    found = input_of(args, kwargs)
    if found is not None:
        return found
    # Such a layer looks positions up; which ones is its own affair, how many shows in the output.
    shape = output.shape[:-1] if isinstance(output, Tensor) else ()
    return torch.zeros(shape, dtype=torch.long, device=getattr(output, "device", None))


def read_where_it_ran(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    """As ``read_by``, on the device of the output.

    Hooks of packages that spread a network over several devices (accelerate) move what a layer
    reads within its call, after ours have seen it.
    """
    return read_by(args, kwargs, output).to(output.device)


def with_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another tensor in the place of ``input_of``."""
    if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
        return (x, *args[1:]), dict(kwargs)  # nearly every call
    leaves, spec = tree_flatten((args, dict(kwargs)))
    index = _place(leaves)
    if index is None:
        return args, dict(kwargs)
    leaves[index] = x
    found: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(leaves, spec)
    return found


def _place(leaves: list[Any]) -> int | None:
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    numbers = (i for i in tensors if leaves[i].is_floating_point())
    return next(numbers, tensors[0] if tensors else None)


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors in a value, or in the tuples, lists and mappings it holds."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
