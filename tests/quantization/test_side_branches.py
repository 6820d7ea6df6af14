"""What a weight may have beside its codes: spelling, bits, and what a file holds of it."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import PrecisionError
from mpq.hardware_profiles import load_device
from mpq.hardware_profiles.linear import linear_cost
from mpq.network.layer import Layer
from mpq.quantization.branch_numbers import BranchNumbers, LowRankNumbers, SparseNumbers, branch_of
from mpq.quantization.precision import Precision
from mpq.quantization.side_branch import LowRank, SideBranch, Sparse, why_no_branch

BRANCHES: list[SideBranch] = [Sparse(20.0), LowRank(2)]


def sparse() -> SparseNumbers:
    """Of a weight [4, 6], whose second row has none."""
    matrix = np.zeros((4, 6), np.float16)
    matrix[0, 1], matrix[0, 5], matrix[2, 0], matrix[3, 4] = 1.5, -2, 3, 0.25
    return SparseNumbers.of(matrix)


def low_rank() -> LowRankNumbers:
    """Of the same shape."""
    draw = np.random.default_rng(0)
    return LowRankNumbers(
        draw.normal(size=(4, 2)).astype(np.float16), draw.normal(size=(2, 6)).astype(np.float16)
    )


both = pytest.mark.parametrize(
    ("numbers", "branch"), [(sparse(), BRANCHES[0]), (low_rank(), BRANCHES[1])], ids=["s", "r"]
)


@given(
    percent=st.integers(1, 500_000).map(lambda n: n / 10_000),
    rank=st.integers(1, 999_999),
    weight=st.sampled_from(["w2", "w3g64", "w4zfg32sfp8", "wcb3", "wmxfp4", "w4t", "wternaryg7"]),
    activation=st.sampled_from(["a32", "a16", "a8d", "a8s"]),
)
def test_what_is_spelled_reads_back(
    percent: float, rank: int, weight: str, activation: str
) -> None:
    """A share to four digits, and any rank, behind all formats of codes."""
    for branch in (Sparse(percent), LowRank(rank)):
        precision = Precision.parse(f"{weight}+{branch}{activation}")

        assert precision.weight.branch == branch
        assert precision.weight.plain == Precision.parse(weight).weight
        assert Precision.parse(str(precision)) == precision
        assert repr(branch) in repr(precision.weight)


@pytest.mark.parametrize(
    ("spelled", "why"),
    [
        ("w3+s0%", "more than 0 and at most 50 %"),
        ("w3+s50.1%", "more than 0 and at most 50 %"),
        ("w3+r0", "at least 1"),
        ("w16+r4", "fp16 has none"),
        ("w32+s1%", "fp32 has none"),
        ("w3+s0.12345%", "is not a precision"),
        ("w3+s1", "is not a precision"),
        ("w3a8+r4", "is not a precision"),
        ("w3+r4+s1%", "is not a precision"),
    ],
)
def test_what_makes_no_sense_is_refused(spelled: str, why: str) -> None:
    """With a sentence that says what is expected."""
    with pytest.raises(PrecisionError, match=why):
        Precision.parse(spelled)


@pytest.mark.parametrize("percent", [0.01, 0.5, 3.0, 12.5, 50.0])
@pytest.mark.parametrize(("rows", "inputs"), [(64, 64), (3, 1000), (1000, 3), (7, 1)])
def test_bits_of_a_sparse_branch_are_counted_by_hand(
    percent: float, rows: int, inputs: int
) -> None:
    """Values, and the columns with a count for every row, or a bit for every weight if less."""
    weight = Precision.parse(f"w3g64+s{percent:g}%").weight
    count = ceil(rows * inputs * percent / 100 - 1e-9)
    places = count * ceil(log2(inputs)) + rows * ceil(log2(inputs + 1))

    bits = weight.stored_bits(rows * inputs, rows) - weight.plain.stored_bits(rows * inputs, rows)

    assert bits == 16 * count + min(places, rows * inputs)


def test_bits_of_a_low_rank_branch_are_those_of_two_matrices() -> None:
    """In fp16: w4g64 of a weight [128, 64] takes 4.25 bits, a rank of 4 adds 4 * 192 * 16."""
    weight = Precision.parse("w4g64+r4").weight

    assert weight.stored_bits(128 * 64, 128) == 128 * 64 * 4.25 + 4 * (128 + 64) * 16


def layer(rows: int, inputs: int) -> Layer:
    """A linear layer that is called at 10 positions."""
    size = rows * inputs
    shapes = ((10, inputs), (10, rows))
    return Layer("fc", "linear", (rows, inputs), rows, *shapes, 10 * inputs, 10 * rows, 10 * size)


def test_what_a_branch_costs_follows_from_its_bits_and_macs() -> None:
    """MACs of fp16 weights, whose significand has 11 bits, at every position."""
    fc = layer(32, 64)
    spelled = [Precision.parse(f"w3{branch}a8") for branch in ("", "+s1%", "+r2")]

    def cost(resource: str) -> list[float]:
        return [float(x) for x in linear_cost(resource, [fc], spelled).values[0]]

    plain, with_sparse, with_low_rank = cost("bit_operations")
    assert with_sparse - plain == 10 * ceil(32 * 64 / 100) * 11 * 8
    assert with_low_rank - plain == 10 * 2 * (32 + 64) * 11 * 8
    for precision, found in zip(spelled, cost("weight_bytes"), strict=True):
        assert found == ceil(precision.weight.stored_bits(32 * 64, 32) / 8)


@pytest.mark.parametrize("spelled", ["w8+s1%a8", "w8+r2a8"])
def test_a_datasheet_prices_no_branch(spelled: str) -> None:
    """It says nothing of how fast one is added."""
    device, fc = load_device("cortex-m7"), layer(32, 64)

    assert device.can_run(fc, Precision.parse("w8a8"))
    assert not device.can_run(fc, Precision.parse(spelled))
    assert not device.runs_somewhere(Precision.parse(spelled))


def test_a_rank_has_to_fit_the_weight() -> None:
    """At most the smaller side; shares always fit."""
    assert why_no_branch(LowRank(3), 12, 3) == ""
    assert "more than that of its weight [3, 4], 3" in why_no_branch(LowRank(4), 12, 3)
    assert why_no_branch(Sparse(50.0), 12, 3) == why_no_branch(None, 12, 3) == ""


@both
def test_numbers_are_those_of_the_matrix(numbers: BranchNumbers, branch: SideBranch) -> None:
    """In double precision by numpy, to the last digits of float32."""
    if isinstance(numbers, LowRankNumbers):
        expected = numbers.left.astype(np.float64) @ numbers.right.astype(np.float64)
    else:
        expected = np.zeros((4, 6))
        expected[[0, 0, 2, 3], [1, 5, 0, 4]] = [1.5, -2, 3, 0.25]

    assert numbers.why_not(branch, (4, 6)) == ""
    np.testing.assert_allclose(numbers.numbers(6), expected, rtol=1e-6)


@both
@pytest.mark.parametrize(
    "rows", [slice(1, 3), slice(0, 0), slice(0, 4), np.array([3, 0, 0, 1]), np.array([], np.int64)]
)
def test_a_part_is_those_rows_bit_for_bit(
    numbers: BranchNumbers, branch: SideBranch, rows: Any
) -> None:
    """Whichever rows are asked for, in whichever order."""
    found = numbers.part(rows).numbers(6)

    assert numbers.why_not(branch, (4, 6)) == ""
    assert np.array_equal(found, numbers.numbers(6)[rows])


@both
def test_arrays_are_read_back(numbers: BranchNumbers, branch: SideBranch) -> None:
    """By their names in a file."""
    again = branch_of(numbers.arrays())

    assert again is not None
    assert again.why_not(branch, (4, 6)) == ""
    assert np.array_equal(again.numbers(6), numbers.numbers(6))
    assert branch_of({}) is None


def changed(field: str, change: Callable[[Any], Any]) -> SparseNumbers:
    found = sparse()
    return replace(found, **{field: change(getattr(found, field).copy())})


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (changed("counts", lambda x: x[:3]), "of 4 rows"),
        (changed("counts", lambda x: x + 1), "numbers, not of up to"),
        (changed("counts", lambda x: x.astype(np.int64)), "int64"),
        (changed("columns", lambda x: x[:2]), "numbers, not of up to"),
        (changed("columns", lambda x: x[::-1]), "do not rise"),
        (changed("columns", lambda x: x + 3), "do not rise"),
        (changed("columns", lambda x: x - 1), "do not rise"),
        (changed("values", lambda x: x * np.inf), "not finite"),
    ],
)
def test_places_that_make_no_sense_are_refused(numbers: SparseNumbers, why: str) -> None:
    """As a file may hold them."""
    assert why in numbers.why_not(Sparse(20.0), (4, 6))


def test_a_branch_of_another_format_is_refused() -> None:
    """One kind for the other, too many numbers, another rank, matrices that are not finite."""
    assert "have a sparse branch" in sparse().why_not(LowRank(2), (4, 6))
    assert "have a sparse branch" in sparse().why_not(None, (4, 6))
    assert "not of up to 3" in sparse().why_not(Sparse(12.0), (4, 6))
    assert "have a low-rank branch" in low_rank().why_not(Sparse(20.0), (4, 6))
    assert "of ((4, 2), (2, 6)), not of" in low_rank().why_not(LowRank(3), (4, 6))
    broken = replace(low_rank(), left=np.full((4, 2), np.nan, np.float16))
    assert "not finite" in broken.why_not(LowRank(2), (4, 6))
