"""What keeps assignments away from one that is known."""

from itertools import product

import numpy as np
import pytest

from mpq.problem.cut import Cut


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_the_row_says_what_the_cut_says(distance: int) -> None:
    """Solvers are given the row, answers are checked by the cut: for every assignment the same."""
    cut = Cut(np.array([0, 2, 1]), distance)
    same, most = cut.row(3)

    for columns in map(np.array, product(range(3), repeat=3)):
        num_same = same[np.arange(3), columns].sum()
        assert (num_same <= most) == cut.is_met(columns)
        assert cut.is_met(columns) == (np.count_nonzero(columns != [0, 2, 1]) >= distance)
