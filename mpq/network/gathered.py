"""Matrices of a parameter that an index has picked: ``w[experts]``, and products with these.

The copies are of the network's own making, and each of them is a layer: it reads the rows of those
examples for which the index has picked it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INTEGERS: Final = (torch.int64, torch.int32, torch.int16, torch.int8)
_Picked = tuple[Tensor, int, Tensor]
"""A tensor, the axis that an index picks along, and the index."""


@final
@dataclass(frozen=True, eq=False)
class Gathered:
    """Parts of a parameter, copied one behind the other.

    Args:
        parameter: The parameter.
        firsts: ``[R]`` where in the parameter's numbers every copy begins.
        size: Numbers of one copy.
        how: Name of the function that made them.
    """

    parameter: Tensor
    firsts: Tensor
    size: int
    how: str

    def matrices(self, view: Tensor, size: int) -> Tensor | None:
        """``[...]``: which matrix of the parameter each one in ``[..., I, O]`` is, by number.

        Args:
            view: Of the copies.
            size: Numbers of one matrix.
        """
        places = torch.tensor(view.storage_offset(), device=view.device)
        for count, stride in zip(view.shape[:-2], view.stride()[:-2], strict=True):
            places = places[..., None] + stride * torch.arange(count, device=view.device)
        inside = places % self.size
        begins = self.firsts[places // self.size] + inside
        is_whole = bool((begins % size == 0).all()) and bool((inside + size <= self.size).all())
        return begins // size if is_whole else None


def gathered(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], parameter: Tensor, result: Any
) -> Gathered | None:
    """What a function has picked of a parameter with three axes or more; ``None``: nothing.

    Args:
        func: A torch function.
        args: Its arguments; the first tensor that is picked from lies in the parameter.
        kwargs: And by name.
        parameter: Contiguous.
        result: What it returned.
    """
    picks = _PICKS.get(func)
    # Of a matrix rows are picked, which are no matrices.
    if picks is None or parameter.ndim < 3 or not isinstance(result, Tensor):
        return None
    picked: _Picked | None = None
    with suppress(TypeError):  # an option of another kind, as `out`
        picked = picks(*args, **kwargs)
    if picked is None or not picked[0].is_contiguous() or not result.is_contiguous():
        return None
    tensor, axis, index = picked
    length, size = tensor.shape[axis], prod(tensor.shape[axis + 1 :])
    index = index.to(tensor.device).long().flatten()
    outer = torch.arange(prod(tensor.shape[:axis]), device=tensor.device)
    firsts = (outer[:, None] * length + index.remainder(max(length, 1))).flatten() * size
    if firsts.numel() * size != result.numel():
        return None
    offset = int(tensor.storage_offset()) - int(parameter.storage_offset())
    return Gathered(parameter, firsts + offset, size, func.__name__)


def _get_item(tensor: Tensor, key: Any) -> _Picked | None:
    """``w[index]``, ``w[2, index]``, ``w[:, index]``, each with whole axes behind it."""
    keys = list(key) if isinstance(key, tuple) else [key]
    axis = 0
    for place, each in enumerate(keys):
        if isinstance(each, int) and not isinstance(each, bool) and axis == 0:
            tensor = tensor[each]
        elif isinstance(each, slice) and each == slice(None):
            axis += 1
        else:
            index = _indices(each)
            is_last = all(x is Ellipsis or _is_all(x) for x in keys[place + 1 :])
            return (tensor, axis, index) if index is not None and is_last else None
    return None


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _indices(value: Any) -> Tensor | None:
    if isinstance(value, list | np.ndarray):
        value = torch.as_tensor(value)
    return value if isinstance(value, Tensor) and value.dtype in _INTEGERS else None


def _index_select(input: Tensor, dim: int, index: Tensor) -> _Picked | None:  # noqa: A002
    return input, dim % input.ndim, index


def _gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> _Picked | None:  # noqa: A002, ARG001
    """Where the index is spread over all other axes, as it has to be to pick whole parts."""
    axis = dim % input.ndim
    others = [i for i in range(input.ndim) if i != axis]
    is_spread = all(index.stride(i) == 0 or index.shape[i] == 1 for i in others)
    # A shorter index cuts the other axes off.
    is_whole = all(index.shape[i] == input.shape[i] for i in others)
    if axis or not is_spread or not is_whole:
        return None
    return input, axis, index.flatten(1)[:, 0]


def _take_along(input: Tensor, indices: Tensor, dim: int | None = None) -> _Picked | None:  # noqa: A002
    if dim is None or indices.ndim != input.ndim:
        return None
    axis = dim % input.ndim
    shape = [n if i != axis else indices.shape[i] for i, n in enumerate(input.shape)]
    return _gather(input, axis, indices.expand(shape))


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> _Picked | None:  # noqa: A002
    return weight, 0, input


_PICKS: Final[dict[Any, Callable[..., _Picked | None]]] = {
    Tensor.__getitem__: _get_item,
    torch.index_select: _index_select,
    Tensor.index_select: _index_select,
    torch.gather: _gather,
    Tensor.gather: _gather,
    torch.take_along_dim: _take_along,
    Tensor.take_along_dim: _take_along,
    F.embedding: _embedding,
}


def routed(layers: Sequence[nn.Module], chosen: Tensor, x: Tensor, outputs: int) -> Tensor:
    """Every matrix's rows through its layer, as ``x @ w[chosen]`` with its broadcasting.

    Args:
        layers: All of a parameter.
        chosen: ``[...]`` which of them.
        x: ``[..., T, I]``, or ``[I]``.
        outputs: ``O``, of every layer.

    Returns:
        ``[..., T, O]``, or ``[..., O]``.
    """
    if x.ndim == 1:
        return routed(layers, chosen, x[None], outputs).squeeze(-2)
    shape = torch.broadcast_shapes(chosen.shape, x.shape[:-2])
    rows = x.expand(*shape, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
    # One row of each is a row to the layer, too, as where modules are called.
    rows = rows.squeeze(1) if x.shape[-2] == 1 else rows
    found = list(_parts(layers, chosen.expand(shape).flatten(), rows))
    if not found:
        return x.new_zeros(*shape, x.shape[-2], outputs)
    y = torch.cat([part for _, part in found])
    return y[torch.cat([places for places, _ in found]).argsort()].reshape(*shape, -1, outputs)


def _parts(
    layers: Sequence[nn.Module], chosen: Tensor, rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    # What no row has chosen is not called.
    for index in chosen.unique().tolist() if len(rows) else ():
        (places,) = torch.where(chosen == index)
        yield places, layers[index](rows[places])
