"""What keeps assignments away from one that is known."""

from itertools import product

import numpy as np
import pytest

from mpq.errors import FileFormatError, InputError
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


@pytest.mark.parametrize(
    ("columns", "num_layers", "message"),
    [
        ([0, 2], 0, "a cut is by at least 1 differing layer; got 0"),
        ([0, 2], -3, "a cut is by at least 1 differing layer; got -3"),
        ([0, -1, -7], 1, "a cut's columns count from 0; got -7"),
    ],
)
def test_a_cut_that_leaves_nothing_out_is_refused(
    columns: list[int], num_layers: int, message: str
) -> None:
    """And one with a column that numpy would count from the end."""
    with pytest.raises(InputError) as caught:
        Cut(np.array(columns), num_layers)

    assert str(caught.value) == message


def test_a_cut_comes_back_from_its_file() -> None:
    """And is refused by its place where a column is something else."""
    data = Cut(np.array([0, 2, 1]), 2).to_dict()

    found = Cut.from_dict(data)

    assert (found.columns.tolist(), found.num_layers) == ([0, 2, 1], 2)
    with pytest.raises(FileFormatError, match="^not a cut: columns/1: expected whole numbers, got"):
        Cut.from_dict(data | {"columns": [0, "2", 1]})
