"""Tolerances by what they admit and what they refuse."""

from itertools import pairwise
from sys import float_info

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.problem import tolerances
from mpq.problem.pairwise_costs import PairwiseCosts
from mpq.problem.tolerances import is_within


@given(
    limit=st.floats(-1e300, 1e300).filter(lambda x: abs(x) > 1e-280),
    share=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_a_limit_has_a_slack_of_a_trillionth(limit: float, share: float) -> None:
    """Of its size, on either side of 0; twice as much is beyond it."""
    assert is_within(limit + share * 1e-12 * abs(limit), limit)
    assert not is_within(limit + 2e-12 * abs(limit), limit)


def test_a_limit_of_0_has_no_slack() -> None:
    """No sum of cells that are at least 0 comes out above it by rounding."""
    assert is_within(0.0, 0.0)
    assert not is_within(float_info.min, 0.0)


def test_what_is_bounded_by_less_has_less_slack() -> None:
    """From the rounding of a single sum to what a solver's own arithmetic may be off."""
    ascending = [
        tolerances.LAST_DIGITS,
        tolerances.DIFFERENCE,
        tolerances.SEARCHED_SUMS,
        tolerances.EQUAL_SUMS,
        tolerances.DUAL_BOUND,
        tolerances.EQUAL_LOSSES,
    ]

    assert float_info.epsilon < ascending[0]
    assert all(less < more for less, more in pairwise(ascending))
    assert tolerances.EQUAL_SUMS == tolerances.LIMIT
    assert tolerances.EQUAL_LOSSES == tolerances.PROVED_BOUND < 1e-6  # a loss of six digits counts


@pytest.mark.parametrize(("num_steps", "num_pairs"), [(0, 0), (1, 0), (4, 0), (5, 1), (1000, 1)])
@pytest.mark.parametrize("size", [2.0**-30, 1.0, 2.0**40])
def test_what_two_subtractions_leave_is_no_pair(
    size: float, num_steps: int, num_pairs: int
) -> None:
    """Up to a quadrillionth of the largest cell of that table; what is more couples the groups."""
    last = size * (1 + num_steps * float_info.epsilon)
    values = np.array([[[1e6, 1e6], [1e6, 1e6]], [[size, size], [size, last]]])
    pair = PairwiseCosts(np.array([0]), np.array([1]), values[None])

    alone, left = pair.separated(np.ones((2, 2), dtype=np.bool_))

    assert len(left) == num_pairs
    assert alone.tolist() == [[[1e6, 1e6], [0, 0]], [[size, size], [0, 0]]]
    if num_pairs:
        assert left.values.tolist() == [[[[0, 0], [0, 0]], [[0, 0], [0, last - size]]]]


def test_a_share_at_the_tolerance_itself_is_no_pair() -> None:
    """What is more by a last digit is one."""
    for cell, num_pairs in ((1e-15, 0), (np.nextafter(1e-15, 1.0), 1)):
        values = np.array([[[0.0, 0.0, 0.0], [0.0, cell, 0.0], [0.0, 0.0, 0.0]]])
        also = np.array([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
        pair = PairwiseCosts(np.array([0]), np.array([1]), (values + also)[None])

        _, left = pair.separated(np.ones((3, 3), dtype=np.bool_))

        assert (left.values[0, 0, 1, 1] > 0) == bool(num_pairs)
        assert left.values[0, 0, 2, 2] == 1.0
