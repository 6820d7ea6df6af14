"""``einsum`` with a parameter among its operands, as products with matrices of that parameter."""

from collections.abc import Sequence
from itertools import product as pairs_of
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mpq.network.gathered import Gathered
from mpq.network.weight_use import (
    Block,
    Locate,
    WeightCall,
    gathered_product,
    matrices,
    single,
)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def einsum(locate: Locate, equation: Any, *operands: Any) -> WeightCall | None:
    """As that of layers, where one operand is a weight; see ``weight_calls``.

    Of several others, one is multiplied with the weight first: that which shares an axis with it
    that nothing else has.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms = _terms(equation, operands)
    places = [i for i, operand in enumerate(operands) if locate(operand) is not None]
    if terms is None or len(places) != 1:
        return None
    *labels, output = terms
    place = places[0]
    others = [i for i in range(len(operands)) if i != place]
    beside = {i: {*output}.union(*(labels[j] for j in others if j != i)) for i in others}
    own = {i: {*labels[i]} & {*labels[place]} - beside[i] for i in others}
    read = [i for i in others if own[i]]
    if not read:
        return None
    # Matrices are a weight's last axes: what shares the first one alone chooses among them.
    first = max(read, key=lambda i: max(map(labels[place].index, own[i])))
    # What is left of the two, in an order of its own where more is multiplied to it.
    kept = "".join(dict.fromkeys(labels[first] + labels[place]))
    middle = output if len(others) == 1 else "".join(c for c in kept if c in beside[first])
    call = _contraction(
        locate(operands[place]), operands[first], labels[place], labels[first], middle
    )  # fmt: skip
    if call is None or len(others) == 1:
        return call
    rest = [i for i in others if i != first]
    equation = f"{','.join([middle, *(labels[i] for i in rest)])}->{output}"

    def compute(layers: Sequence[nn.Module]) -> Tensor:
        return torch.einsum(equation, call.compute(layers), *(operands[i] for i in rest))

    return WeightCall(call.parameter, call.use, call.layers, compute)


def _terms(equation: Any, operands: Sequence[Any]) -> list[str] | None:
    """Letters of every operand's axes, and of the output's; with an ellipsis as letters."""
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        return None
    left, arrow, output = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    if len(labels) != len(operands):
        return None
    if not arrow:  # torch's rule: what is there once, by the alphabet
        once = sorted(c for c in {*left} - {",", "."} if left.count(c) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    spare = [c for c in _LETTERS if c not in equation]
    inside = [x.ndim - len(t.replace("...", "")) for x, t in zip(operands, labels, strict=True)]
    letters = "".join(
        spare[: max((n for n, t in zip(inside, labels, strict=True) if "." in t), default=0)]
    )
    # Aligned at the last axis, as torch does it.
    labels = [
        t.replace("...", letters[len(letters) - n :]) for n, t in zip(inside, labels, strict=True)
    ]
    found = [*labels, output.replace("...", letters)]
    if any(len({*term}) < len(term) or "." in term for term in found):
        return None
    return found if all(x.ndim == len(t) for x, t in zip(operands, labels, strict=True)) else None


def _contraction(
    block: Block | None, x: Tensor, of_weight: str, of_x: str, output: str
) -> WeightCall | None:
    """Of two operands; the weight's axes choose matrices, or are their inputs and outputs."""
    assert block is not None
    if block.gathered is not None:
        return _of_copies(block, block.gathered, x, of_weight, of_x, output)
    axes = _axes(of_weight, of_x, output)
    sizes = dict(zip(of_weight, block.tensor.shape, strict=True))
    known = dict(zip(of_x, x.shape, strict=True))
    # What was no view is contiguous as it was: then it lies in no parameter, and is no weight.
    is_same = all(sizes[c] == known[c] for c in of_x if c in sizes)
    if axes is None or not is_same or not block.tensor.is_contiguous():
        return None
    chosen, read, written, is_transposed = axes
    sizes |= known
    inputs, outputs = (prod(sizes[c] for c in group) for group in (read, written))
    lead = [prod(sizes[c] for c in chosen)] if chosen else []
    stored = block.tensor.view(*lead, *((inputs, outputs) if is_transposed else (outputs, inputs)))
    width = outputs if is_transposed else inputs
    found = matrices(block, stored if is_transposed else stored.mT, width)
    if found is None:
        return None
    shared = "".join(c for c in chosen if c in of_x)
    rest = "".join(c for c in of_x if c not in of_weight)
    order = chosen + rest + written

    def compute(layers: Sequence[nn.Module]) -> Tensor:
        rows = x.permute([of_x.index(c) for c in shared + rest + read])
        rows = rows.reshape([sizes[c] for c in shared + rest] + [inputs])
        every = pairs_of(*(range(sizes[c]) for c in chosen))
        places = [
            tuple(i for i, c in zip(index, chosen, strict=True) if c in of_x) for index in every
        ]
        # The very tensor for all layers that read it, so that they are found to be tied.
        parts = {place: rows[place] if place else rows for place in dict.fromkeys(places)}
        y = torch.stack([single(m, parts[i]) for m, i in zip(layers, places, strict=True)])
        y = y.reshape([sizes[c] for c in order])
        return y.permute([order.index(c) for c in output])

    return WeightCall(block.parameter, *found, compute)


def _axes(of_weight: str, of_x: str, output: str) -> tuple[str, str, str, bool] | None:
    """Which of the weight's axes choose a matrix, are read, and are written, in its memory.

    The last value says whether matrices are stored as ``[I, O]``; ``None``: it holds no matrices.
    """
    read = "".join(c for c in of_weight if c in of_x and c not in output)
    written = "".join(c for c in of_weight if c not in of_x and c in output)
    rest = "".join(c for c in of_x if c not in of_weight)
    first = of_weight.find(read[:1])
    before, after = of_weight[:first], of_weight[first + len(read) :]
    is_all = sorted(output) == sorted({*of_weight} - {*read} | {*rest})
    # Together in memory, as rows or columns of a matrix have to be.
    if not (read and written and is_all and of_weight[first : first + len(read)] == read):
        return None
    if not after:
        chosen = of_weight[: len(before) - len(written)]
        return (chosen, read, written, False) if before == chosen + written else None
    return (before, read, after, True) if all(c in written for c in after) else None


def _of_copies(
    block: Block, copies: Gathered, x: Tensor, of_weight: str, of_x: str, output: str
) -> WeightCall | None:
    """Of copies of a parameter's parts: ``beck,bk->bec`` with ``w[experts]``."""
    strides = dict(zip(of_weight, block.tensor.stride(), strict=True))
    sizes = dict(zip(of_weight, block.tensor.shape, strict=True))
    known = dict(zip(of_x, x.shape, strict=True))
    is_same = all(sizes[c] == known[c] for c in of_x if c in sizes)
    # From copy to copy, or in a copy from matrix to matrix.
    leads = {c for c in of_weight if not 0 < strides[c] < copies.size or sizes[c] == 1}
    read = "".join(c for c in of_weight if c in of_x and c not in {*output} | leads)
    lead = "".join(c for c in of_weight if c not in read and (c in of_x or c in leads))
    written = "".join(c for c in of_weight if c not in read + lead)
    rest = "".join(c for c in of_x if c not in of_weight)
    # What is summed over in one of the two alone is no product.
    if not (read and written and is_same and {*written, *rest} <= {*output}):
        return None
    sizes |= known
    inputs, outputs = (prod(sizes[c] for c in group) for group in (read, written))
    ordered = block.tensor.permute([of_weight.index(c) for c in lead + read + written])
    try:
        view = ordered.view([sizes[c] for c in lead] + [inputs, outputs])
    except RuntimeError:  # axes of a matrix that do not lie together
        return None
    # Rows of a matrix are its last axes in memory.
    is_transposed = min(strides[c] for c in written) == 1
    width = outputs if is_transposed else inputs
    shared = [c for c in lead if c in of_x]
    rows = x.permute([of_x.index(c) for c in [*shared, *rest, *read]])
    rows = rows.reshape(
        [sizes[c] if c in of_x else 1 for c in lead] + [prod(sizes[c] for c in rest), inputs]
    )
    order = lead + rest + written

    def finish(y: Tensor) -> Tensor:
        # Also where the copies themselves are summed over.
        return torch.einsum(f"{order}->{output}", y.reshape([sizes[c] for c in order]))

    return gathered_product(copies, rows, view, width, finish)
