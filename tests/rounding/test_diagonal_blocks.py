"""Second moments of blocks along the diagonal: what the whole matrix gives, in less memory."""

import pytest
import torch
from torch import Tensor

from mpq.quantization.numerics import OWN
from mpq.rounding import ROUNDINGS
from mpq.rounding.diagonal_blocks import (
    add_product,
    add_to_diagonal,
    blocks,
    diagonal,
    product,
    quadratic,
)
from mpq.rounding.moved_target import moved_target
from tests.rounding.cases import SPELLINGS, formats_of, layer, rounded

SIZE = 12
"""Inputs of a block: with groups of 4 inside, and with groups of 5, 6 and 7 across the border."""


def in_blocks(num_rows: int, num_inputs: int, num_groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A weight ``[O, K]``, blocks ``[G, K, k]``, and the same as a matrix ``[G, K, K]``."""
    rows, moment = layer(num_rows, num_inputs, num_groups, seed=3)
    found = torch.zeros(num_groups, num_inputs, SIZE)
    for part, block in blocks(found):
        block.copy_(moment[:, part, part])
    return rows, found, dense(found)


def dense(matrix: Tensor) -> Tensor:
    """``[..., K, K]``, with the zeros written out."""
    found = matrix.new_zeros(*matrix.shape[:-1], matrix.shape[-2])
    for part, block in blocks(matrix):
        found[..., part, part] = block
    return found


@pytest.mark.parametrize("name", ROUNDINGS.names())
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("num_groups", [1, 2])
def test_codes_are_those_of_the_whole_matrix(name: str, spelling: str, num_groups: int) -> None:
    """Where it is 0 between blocks, to the last code, for every layout of scales."""
    rows, moment, whole = in_blocks(6, 31, num_groups)
    rounding = ROUNDINGS.build("adaround:iterations=40" if name == "adaround" else name)

    (found,) = rounded(rounding, rows, moment, formats_of(spelling))

    (expected,) = rounded(rounding, rows, whole, formats_of(spelling))
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-3, atol=0)


def test_codes_of_several_formats_at_once() -> None:
    """As in a search: all in one pass."""
    rows, moment, whole = in_blocks(6, 31)
    formats = formats_of("w2", "w4", "w3g4")

    found = rounded(ROUNDINGS.build("gptq"), rows, moment, formats, OWN)

    expected = rounded(ROUNDINGS.build("gptq"), rows, whole, formats, OWN)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(found, expected, strict=True))


def test_what_blocks_leave_out_costs_something() -> None:
    """A moment that is not 0 between blocks: by the whole of it the error is larger."""
    rows, moment = layer(64, 36, seed=1)
    cut = torch.zeros(1, 36, SIZE)
    for part, block in blocks(cut):
        block.copy_(moment[:, part, part])
    gptq = ROUNDINGS.build("gptq")

    by_blocks, by_whole = (rounded(gptq, rows, m, formats_of("w3"))[0] for m in (cut, moment))

    def error(numbers: Tensor) -> float:
        return float(((numbers - rows) @ moment[0] * (numbers - rows)).sum())

    nearest = rounded(ROUNDINGS.build("nearest"), rows, moment, formats_of("w3"))[0]
    assert error(by_whole.numbers()) < error(by_blocks.numbers()) < error(nearest.numbers())


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("size", [1, 4, 9, 10])
def test_products_are_those_of_the_whole_matrix(batch: tuple[int, ...], size: int) -> None:
    """Of all inputs, and of some, which may lie in several blocks."""
    matrix = torch.zeros(*batch, 10, size)
    for _, block in blocks(matrix):
        block.copy_(torch.randn(block.shape))
    columns, inputs = torch.randn(*batch, 10, 3), torch.tensor([3, 4, 5, 9])
    some = torch.zeros_like(columns)
    some[..., inputs, :] = columns[..., inputs, :]
    whole = dense(matrix)

    added = torch.ones_like(columns)
    add_product(added, matrix, inputs, columns[..., inputs, :])

    torch.testing.assert_close(product(matrix, columns), whole @ columns)
    torch.testing.assert_close(added, 1 + whole @ some)
    of_some = quadratic(matrix, inputs, columns[..., inputs, :])
    torch.testing.assert_close(of_some, (some * (whole @ some)).sum(dim=-2))
    assert torch.equal(diagonal(matrix), whole.diagonal(dim1=-2, dim2=-1))
    add_to_diagonal(matrix, torch.ones(*batch, 1))
    torch.testing.assert_close(dense(matrix), whole + torch.eye(10))


def test_a_target_is_moved_block_by_block() -> None:
    """As by the whole matrices, which are 0 between blocks."""
    rows, moment, whole = in_blocks(6, 31, 2)
    crossed = 0.9 * moment

    found = moved_target(rows, moment, crossed)

    torch.testing.assert_close(found, moved_target(rows, whole, 0.9 * whole))
