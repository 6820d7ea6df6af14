"""SqueezeLLM, SpQR and GWQ: all layers have the most bits whose bytes, counted anew, fit."""

from collections.abc import Callable
from math import ceil, log2

import pytest
import torch
from torch import nn

import mpq
from tests.recipes.reference import data

SHAPES = ((40, 6), (24, 40), (3, 24))
BIASES = 4 * (40 + 24 + 3)


def net() -> nn.Sequential:
    """Of rows that are longer than a codebook."""
    torch.manual_seed(0)
    parts = [part for o, k in SHAPES for part in (nn.Linear(k, o), nn.Tanh())]
    return nn.Sequential(*parts[:-1]).eval()


def kept_bits(rows: int, columns: int, share: float) -> int:
    """Of weights in 16 bits, and of where they are: their columns, or a bit for every weight."""
    count = ceil(share * rows * columns)
    places = count * ceil(log2(columns)) + rows * ceil(log2(columns + 1))
    return count * 16 + min(places, rows * columns)


def squeezellm(bits: int, rows: int, columns: int) -> int:
    """Codes, a codebook in 16 bits for every row, and .45 % kept."""
    return bits * rows * columns + rows * (1 << bits) * 16 + kept_bits(rows, columns, 0.0045)


def spqr(bits: int, rows: int, columns: int) -> int:
    """Codes, a scale of 8 bits and a zero point for 16 weights of a row, and 1 % kept."""
    groups = rows * ceil(columns / 16)
    steps = ceil(groups / 256) * 32 + 32
    return bits * (rows * columns + groups) + 8 * groups + steps + kept_bits(rows, columns, 0.01)


def gwq(bits: int, rows: int, columns: int) -> int:
    """Codes, a scale of 16 bits for every row of at most 64, and 1 % kept."""
    return bits * rows * columns + 16 * rows + kept_bits(rows, columns, 0.01)


def total(counted: Callable[[int, int, int], int], bits: int) -> float:
    """Bytes of the network's weights at uniform bits."""
    return sum(ceil(counted(bits, *shape) / 8) for shape in SHAPES)


@pytest.mark.parametrize("counted", [squeezellm, spqr, gwq])
@pytest.mark.parametrize("bits", [3, 4])
def test_all_layers_have_the_most_bits_that_fit(
    counted: Callable[[int, int, int], int], bits: int
) -> None:
    """To the byte: with one byte less than 4 bits take it is 3, at their own bytes it is they."""
    limit = total(counted, 4) + BIASES - (bits < 4)
    assert total(counted, 3) + BIASES < limit

    found = mpq.search(
        mpq.Task(net(), data, data), {"weight_bytes": limit}, recipe=counted.__name__
    )

    assert [p.weight.number.bits for p in found.assignment.precisions.values()] == [bits] * 3
    used = found.cost_table("weight_bytes").values[range(3), found.columns].sum()
    assert used == total(counted, bits)
