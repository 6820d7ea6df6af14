"""Requantization of LiteRT's kernels against arithmetic written out in whole numbers."""

from fractions import Fraction
from math import floor, frexp

import pytest
import torch

from mpq.backends.litert.requantizing import Rounding, requantized


def _twice(total: int, ratio: float, up: bool) -> int:
    """A product with a multiplier of 31 bits, rounded, then a shift, rounded again."""
    mantissa, exponent = frexp(ratio)
    factor = round(mantissa * 2**31)
    first = floor(Fraction(total * 2 ** max(exponent, 0) * factor, 2**31) + Fraction(1, 2))
    shifted = Fraction(first, 2 ** max(-exponent, 0))
    if up or shifted >= 0:
        return floor(shifted + Fraction(1, 2))
    return -floor(-shifted + Fraction(1, 2))


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.1, 0.0173, 0.9999, 1.5])
@pytest.mark.parametrize("rounding", [Rounding.TWICE_UP, Rounding.TWICE_AWAY])
def test_two_roundings_are_those_of_whole_numbers(ratio: float, rounding: Rounding) -> None:
    """Sums on both sides of zero, with exact ties among them."""
    sums = torch.arange(-400, 401, dtype=torch.float64)

    found = requantized(sums, torch.tensor(ratio * 0.5), 0.5, rounding)

    exact = float(torch.tensor(ratio * 0.5)) / 0.5
    is_up = rounding is Rounding.TWICE_UP
    assert found.tolist() == [_twice(int(x), exact, is_up) for x in sums]


def _short(total: int, ratio: float) -> int:
    """A product with the upper 15 bits of a multiplier, rounded once, ties up."""
    mantissa, exponent = frexp(ratio)
    factor = round(mantissa * 2**31)
    if factor == 2**31:
        factor, exponent = 2**30, exponent + 1
    kept = (factor + 2**15) // 2**16 if factor < 0x7FFF0000 else 0x7FFF
    return floor(Fraction(total * kept, 2 ** (15 - exponent)) + Fraction(1, 2))


@pytest.mark.parametrize(
    "ratio", [0.5, 0.25, 0.1, 0.0173, 0.99999, 1.5, 3e-5, 1 - 2.0**-20, 0.5 - 2.0**-34, 77.7]
)
def test_convolutions_of_16_bits_multiply_by_15_bits(ratio: float) -> None:
    """Sums of 40 bits, which float64 holds, and exact ties on both sides of zero."""
    large = torch.linspace(-(2.0**40), 2.0**40, 1001, dtype=torch.float64).round()
    sums = torch.cat([torch.arange(-300, 301, dtype=torch.float64), large])
    scales = torch.tensor(ratio * 0.5, dtype=torch.float64)

    found = requantized(sums, scales, 0.5, Rounding.SHORT)

    assert found.tolist() == [_short(int(x), ratio) for x in sums]


def test_linear_layers_of_16_bits_round_once() -> None:
    """A product of float64, ties away from zero."""
    sums = torch.tensor([-6.0, -2.0, 2.0, 6.0, 10.0, 2.0**40 + 1], dtype=torch.float64)
    scales = torch.tensor(0.25, dtype=torch.float64)

    found = requantized(sums, scales, 1.0, Rounding.FLOAT64)

    assert found.tolist() == [-2, -1, 1, 2, 3, 2.0**38]


def test_kernels_part_at_ties() -> None:
    """A sum of halves: to even, up, and away from zero."""
    sums = torch.tensor([-6.0, -2.0, 2.0, 6.0, 10.0], dtype=torch.float64)

    found = {x: requantized(sums, torch.tensor(0.25), 1.0, x).tolist() for x in Rounding}

    assert found[Rounding.ONCE] == [-2, 0, 0, 2, 2]
    assert found[Rounding.TWICE_UP] == [-1, 0, 1, 2, 3]
    assert found[Rounding.TWICE_AWAY] == found[Rounding.FLOAT64] == [-2, -1, 1, 2, 3]
    assert found[Rounding.SHORT] == found[Rounding.TWICE_UP]


def test_a_second_rounding_moves_what_lies_just_below_a_tie() -> None:
    """By one, and never by more: at this scale some of a hundred codes."""
    sums = torch.arange(-2000, 2001, dtype=torch.float64)
    once, twice = (
        requantized(sums, torch.tensor(0.1003), 1.0, x) for x in (Rounding.ONCE, Rounding.TWICE_UP)
    )

    differences = (once - twice).abs()

    assert differences.max() == 1
    assert 0.03 < float((differences > 0).double().mean()) < 0.1
