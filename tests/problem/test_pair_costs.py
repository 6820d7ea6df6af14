"""Costs of pairs of layers and constants in a table: kept exactly, refused where they are none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8")))


def pair(
    values: Any = ((0.0, 1.0), (2.0, 0.0)), first: str = "a", second: str = "b"
) -> PairwiseCost:
    """Of two layers at two precisions."""
    return PairwiseCost(first, second, np.array(values))


def table(pairs: Sequence[PairwiseCost] = (), constant: float = 0.0) -> CostTable:
    """Of two layers at two precisions."""
    return CostTable(
        "latency", "seconds", ("a", "b"), PRECISIONS[:2], np.ones((2, 2)), constant, tuple(pairs)
    )


def test_columns_of_pairs_are_selected_too() -> None:
    """In the order that is asked for; the constant stays."""
    whole = table([pair()], 0.25)

    swapped = whole.select(PRECISIONS[1::-1])

    np.testing.assert_array_equal(swapped.pairs[0].values, [[0, 2], [1, 0]])
    assert swapped.constant == 0.25
    np.testing.assert_array_equal(whole.select([PRECISIONS[1]]).pairs[0].values, [[0]])


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
    constant=st.floats(allow_nan=False, allow_infinity=False),
)
def test_json_keeps_every_bit(values: list[float], constant: float) -> None:
    """Of pairs and of the constant."""
    expected = table([pair(np.array(values).reshape(2, 2)), pair(first="b", second="a")], constant)

    read = CostTable.from_json(expected.to_json())

    assert read.constant == constant
    assert [(p.first, p.second) for p in read.pairs] == [("a", "b"), ("b", "a")]
    for found, kept in zip(read.pairs, expected.pairs, strict=True):
        np.testing.assert_array_equal(found.values, kept.values)


def test_csv_has_no_place_for_them() -> None:
    """Refused, not left out."""
    for other in (table([pair()]), table(constant=1.0)):
        with pytest.raises(InputError, match="latency has a constant or costs of pairs, .*JSON"):
            other.to_csv()
    assert CostTable.from_csv(table().to_csv()).pairs == ()


def test_values_are_copied_and_read_only() -> None:
    """Nobody changes a pair from outside."""
    values = np.zeros((2, 2))
    kept = pair(values)

    values[0, 0] = 99.0

    assert kept.values[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        kept.values[0, 0] = 99.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second": "a"}, "pair of 'a' and 'a': two different layers are a pair"),
        ({"values": [[0, 1]]}, r"expected \[B, B\], got \(1, 2\)"),
        ({"values": [0, 1]}, r"expected \[B, B\], got \(2,\)"),
        ({"values": [[0, np.nan], [0, 0]]}, "precisions 0 and 1 of the table cost nan; every"),
        ({"values": [[0, 0], [np.inf, 0]]}, "precisions 1 and 0 of the table cost inf; every"),
    ],
)
def test_what_is_no_pair_is_refused(options: dict[str, Any], message: str) -> None:
    """The message names both layers."""
    with pytest.raises(InputError, match=message):
        pair(**options)


def test_pairs_fit_the_table() -> None:
    """Layers that it has, its precisions, a finite constant."""
    with pytest.raises(UnknownNameError, match="no layer of a pair of latency 'c'"):
        table([pair(second="c")])
    with pytest.raises(InputError, match=r"latency: the pair of 'a' and 'b': expected .* \(2, 2\)"):
        table([pair(np.zeros((3, 3)))])
    with pytest.raises(InputError, match="latency: the constant must be finite, got nan"):
        table(constant=float("nan"))


@pytest.mark.parametrize(
    "change",
    [
        {"constant": "much"},
        {"constant": None},
        {"pairs": 7},
        {"pairs": [7]},
        {"pairs": [{"first": "a"}]},
        {"pairs": [{"first": "a", "second": 7, "values": [[0, 0], [0, 0]]}]},
        {"pairs": [{"first": "a", "second": "b", "values": [[0, 0], [0]]}]},
        {"pairs": [{"first": "a", "second": "b", "values": [["x", 0], [0, 0]]}]},
    ],
)
def test_json_with_a_broken_pair_is_refused(change: dict[str, Any]) -> None:
    """As every other broken file."""
    data = table([pair()]).to_dict() | change

    with pytest.raises(FileFormatError, match="not a (valid )?(cost table|pair cost)"):
        CostTable.from_dict(data)


def test_a_pair_of_a_file_has_no_empty_cells() -> None:
    """A cell of a layer may be empty where it cannot run; one of a pair has to have a number."""
    data = table([pair()]).to_dict()
    data["values"][0][1] = None
    data["pairs"][0]["values"][1][0] = None

    with pytest.raises(FileFormatError) as caught:
        CostTable.from_dict(data)

    assert str(caught.value) == "not a pair cost: values/1/0: expected numbers, got null"
