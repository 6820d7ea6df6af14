"""Matrices of one block, or of blocks along the diagonal: second moments of very long rows.

One tensor holds ``[..., K, k]``: of each of ``K`` inputs the entries with the ``k`` inputs of its
block, which are consecutive; beyond a block all are 0 and not stored. With ``k = K`` that is the
whole matrix. The last block may have fewer inputs, and zeros behind them.
"""

import functools
from collections.abc import Iterator
from math import ceil
from typing import Final

import torch
from torch import Tensor

DENSE_INPUTS: Final = 2**14
"""Inputs of a row whose moment takes 1 GiB."""
ALIGNMENT: Final = 256
"""Blocks of longer rows have multiples of so many inputs, which are whole groups of most sizes."""


def moment_shape(
    groups: int, inputs: int, dense_inputs: int = DENSE_INPUTS
) -> tuple[int, int, int]:
    """``[G, K, k]``: a whole matrix for each group, or blocks of ``k`` inputs along its diagonal.

    The fewest blocks that take no more memory than one matrix of ``dense_inputs``, of about equal
    size, which is a multiple of ``ALIGNMENT``, or of a smaller power of two below it.

    Args:
        groups: Of rows, ``G``.
        inputs: Weights in a row, ``K``.
        dense_inputs: Larger ones than that of a row of so many weights are block-diagonal.

    >>> moment_shape(1, 16384), moment_shape(1, 28672), moment_shape(1, 65536)
    ((1, 16384, 16384), (1, 28672, 7168), (1, 65536, 4096))
    """
    most = max(1, dense_inputs**2 // (groups * inputs))
    if most >= inputs:
        return groups, inputs, inputs
    unit = min(ALIGNMENT, 2 ** (most.bit_length() - 1))
    count = ceil(inputs / (most // unit * unit))
    return groups, inputs, ceil(inputs / count / unit) * unit


def blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Every block's inputs, and ``[..., n, n]`` of them, in the matrix's own memory."""
    num_inputs, size = matrix.shape[-2:]
    for start in range(0, num_inputs, size):
        yield _block(matrix, start)


def _blocks_of(matrix: Tensor, inputs: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The blocks that some inputs lie in: their inputs, themselves, which of ``inputs``, where."""
    size = matrix.shape[-1]
    for start in range(int(inputs[0]) // size * size, int(inputs[-1]) + 1, size):
        part, block = _block(matrix, start)
        is_inside = (inputs >= part.start) & (inputs < part.stop)
        yield part, block, is_inside, inputs[is_inside] - part.start


def _block(matrix: Tensor, start: int) -> tuple[slice, Tensor]:
    stop = min(start + matrix.shape[-1], matrix.shape[-2])
    return slice(start, stop), matrix[..., start:stop, : stop - start]


def product(matrix: Tensor, columns: Tensor) -> Tensor:
    """``[..., K, R]``, the matrix times columns ``[..., K, R]``."""
    if matrix.shape[-1] == matrix.shape[-2]:
        return matrix @ columns
    parts = [block @ columns[..., part, :] for part, block in blocks(matrix)]
    return torch.cat(parts, dim=-2)


def diagonal(matrix: Tensor) -> Tensor:
    """``[..., K]``; a matrix of one block shares its memory."""
    if matrix.shape[-1] == matrix.shape[-2]:
        return matrix.diagonal(dim1=-2, dim2=-1)
    return torch.cat([b.diagonal(dim1=-2, dim2=-1) for _, b in blocks(matrix)], dim=-1)


def add_to_diagonal(matrix: Tensor, values: Tensor) -> None:
    """Adds values ``[..., 1]``, in place, each to the diagonal of its own matrix."""
    for _, block in blocks(matrix):
        block.diagonal(dim1=-2, dim2=-1).add_(values)


def quadratic(matrix: Tensor, inputs: Tensor, columns: Tensor) -> Tensor:
    """``[..., R]``, the form of columns that are 0 but at some inputs.

    Args:
        matrix: ``[..., K, k]``.
        inputs: ``[n]``, at least one, rising.
        columns: ``[..., n, R]``.
    """
    found = []
    for _, block, is_inside, places in _blocks_of(matrix, inputs):
        own = columns[..., is_inside, :]
        found.append(((block[..., places, :][..., places] @ own) * own).sum(dim=-2))
    return functools.reduce(Tensor.add_, found)


def add_product(into: Tensor, matrix: Tensor, inputs: Tensor, columns: Tensor) -> None:
    """Adds to ``[..., K, R]``, in place, the matrix times columns that are 0 but at some inputs.

    Args:
        into: ``[..., K, R]``.
        matrix: ``[..., K, k]``.
        inputs: ``[n]``, at least one, rising.
        columns: ``[..., n, R]``.
    """
    for part, block, is_inside, places in _blocks_of(matrix, inputs):
        into[..., part, :] += block[..., places] @ columns[..., is_inside, :]
