"""Dyadic ratios beside exact fractions."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.backends.c.fixed_point import FRACTION, Ratios, point, rounded_off
from mpq.errors import ModelError

NUMBERS = st.floats(2.0**-40, 2.0**30)


@given(ratio=NUMBERS, value=st.integers(-(2**31) + 1, 2**31 - 1))
def test_a_product_is_rounded_half_up(ratio: float, value: int) -> None:
    """As exact fractions say; 31 bits of the ratio are kept, and the product fits into 64."""
    found = Ratios.of(ratio)
    (multiplier,), (shift,) = found.multipliers.tolist(), found.shifts.tolist()

    assert abs(Fraction(multiplier, 2**shift) / Fraction(ratio) - 1) <= Fraction(1, 2**31)
    assert abs(value * multiplier) + 2**shift // 2 < 2**63
    exact = floor(Fraction(value * multiplier, 2**shift) + Fraction(1, 2))
    expected = exact if shift else value * multiplier
    assert found.scaled(np.array([value])).tolist() == [expected]


@given(value=st.integers(-(2**50), 2**50))
def test_a_sum_becomes_a_code(value: int) -> None:
    """To the nearest one, halves up; 32-bit outputs have no point."""
    sums = np.array([value])

    assert rounded_off(sums, point(8)).tolist() == [floor(Fraction(value, 2**FRACTION) + 0.5)]
    assert rounded_off(sums, point(32)).tolist() == [value]


@pytest.mark.parametrize("ratio", [1.0, 2.0 - 2.0**-40, 0.5 - 2.0**-50, 1e-30])
def test_ends_of_ratios(ratio: float) -> None:
    """Powers of two, what is rounded up to one, and what vanishes."""
    found = Ratios.of([ratio, 1.0])

    assert (found.multipliers < 2**31).all()
    nearest = found.multipliers / 2.0**found.shifts
    assert nearest[0] == pytest.approx(ratio, rel=2**-31, abs=2**-63)
    assert nearest[1] == 1.0


def test_a_ratio_that_is_too_large_is_refused() -> None:
    """It would need a shift to the left."""
    with pytest.raises(ModelError, match="4.29e.09, which is too large"):
        Ratios.of(2.0**32)
