"""Squared products of every number's gradient and change, example by example, in tiles."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from mpq.network.tracing import kind_of
from mpq.quantization.rounding import row_tiles
from mpq.sensitivity.passes.weight_changes import (
    SPREAD_ELEMENTS,
    WORK_ELEMENTS,
    Part,
    WeightChanges,
    parts_of,
)
from mpq.sensitivity.passes.weight_gradients import CallGradients, PlainCall


def squared_products(
    calls: Sequence[CallGradients], changes: WeightChanges, num_examples: int
) -> Tensor:
    r"""What squared changes of a weight's units count by the squared gradients of one batch.

    Of output channels that is

    .. math:: P_{o f} = \sum_n \sum_k \Bigl(\sum_c g_{c n o k} \, (Q_f(W) - W)_{o k}\Bigr)^2

    Weights of linear layers are met some channels at a time, and of embeddings only the rows that
    are read: no gradient of a whole weight is made, neither for an example nor for the batch.

    Where examples share a tensor, or hold a varying share of it, only their sum is known. As if
    the examples' gradients were independent, each counts as the sum over the root of ``N``: then
    squares add up to what they would be in the mean.

    Args:
        calls: Of one layer in the batch, ``c``; at least one.
        changes: Of its weight in ``F`` formats.
        num_examples: In the batch, ``N``.

    Returns:
        ``[U, F]`` in float64.
    """
    kind = kind_of(changes.layer_module)
    plain = [call for call in calls if isinstance(call, PlainCall)]
    # Gradients are summed over calls before they are squared, and have to be split alike for that.
    is_alike = len(plain) == len(calls) and len({call.is_split for call in plain}) == 1
    if kind == "linear" and is_alike:
        return _linear([part for call in plain for part in parts_of(call, 1)], changes)
    if kind == "embedding" and is_alike:
        return _table([part for call in plain for part in parts_of(call, 1)], changes)
    return changes.squares(_whole(calls, changes, num_examples))


def _linear(calls: Sequence[Part], changes: WeightChanges) -> Tensor:
    found = changes.no_squares()
    tiles = list(row_tiles(changes.rows))
    buffer = changes.empty(tiles[0].stop) if tiles else changes.empty(0)
    for some in tiles:
        change = buffer[:, : some.stop - some.start]
        changes.of(some, change)
        changes.add(found, some, _counted(change, _squares(calls, some, change[0]), changes))
    return found


def _squares(calls: Sequence[Part], some: slice, like: Tensor) -> Tensor:
    """``[r, K]`` squared gradients of some channels, added up over examples."""
    found, step = torch.zeros_like(like), max(1, WORK_ELEMENTS // max(like.numel(), 1))
    pieces = [zip(call.x.split(step), call.g.split(step), strict=True) for call in calls]
    for of_calls in zip(*pieces, strict=True):
        (x, g), *others = of_calls
        gradients = g[..., some].mT @ x  # [n, r, K]
        for x, g in others:
            gradients += g[..., some].mT @ x
        for gradient in gradients:
            found.addcmul_(gradient, gradient)
    return found


def _table(calls: Sequence[Part], changes: WeightChanges) -> Tensor:
    found, step = changes.no_squares(), max(1, WORK_ELEMENTS // max(changes.rows.shape[1], 1))
    read, gradients = _of_rows(calls)
    for ids, some in zip(read.split(step), gradients.split(step), strict=True):
        rows, place = ids.unique_consecutive(return_inverse=True)
        change = changes.empty(len(rows))
        changes.of(rows, change)
        squares = torch.zeros_like(change[0]).index_add_(0, place, some.square())
        changes.add(found, rows, _counted(change, squares, changes))
    return found


def _of_rows(calls: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Ids ``[M]`` of rows, in order, once for each example that reads it; gradients ``[M, K]``."""
    read = torch.cat([call.x.flatten(1) for call in calls], dim=1)  # [N, P]
    gradients = torch.cat([call.g for call in calls], dim=1).flatten(0, 1)
    examples = torch.arange(len(read), device=read.device).repeat_interleave(read.shape[1])
    pairs, which = torch.stack([read.flatten(), examples]).unique(dim=1, return_inverse=True)
    summed = gradients.new_zeros(pairs.shape[1], gradients.shape[1])
    return pairs[0], summed.index_add_(0, which, gradients)


def _counted(change: Tensor, squares: Tensor, changes: WeightChanges) -> Tensor:
    """``[u, F]`` of changes ``[F, r, K]``, each square times what it counts."""
    # In float64, which holds squares of the smallest numbers, too.
    found = [changes.units.sums(one.double().square_().mul_(squares)) for one in change]
    return torch.stack(found, dim=1)


def _whole(calls: Sequence[CallGradients], changes: WeightChanges, num_examples: int) -> Tensor:
    """``[D]`` squared gradients, added up over examples, where they are computed whole."""
    split = [call for call in calls if call.is_split]
    shared = torch.zeros(
        1, changes.original.numel(), device=changes.rows.device, dtype=torch.float32
    )
    for call in calls:
        if not call.is_split:
            shared += call.whole() / sqrt(num_examples)
    if not split:
        return num_examples * shared[0].square()
    found = torch.zeros_like(shared[0])
    step = max(1, SPREAD_ELEMENTS // max(len(found), *(call.spread for call in split)))
    for start in range(0, num_examples, step):
        some = slice(start, min(start + step, num_examples))
        gradients = sum((call.rows(some) for call in split), start=shared)
        found += gradients.square().sum(dim=0)
    return found
