"""Relations between what a rounding makes of one layer and of another, drawn at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.rounding import ROUNDINGS, WeightRounding
from tests.rounding.cases import errors, formats_of, grids_of, layer, rounded

BITS = st.integers(2, 8).map(str)
POINTS = st.sampled_from(["", "z", "zf"])
PER_CHANNEL = st.tuples(st.just("w"), BITS, POINTS).map("".join)
STORED = st.sampled_from(["", "sbf16", "sdyadic8", "sfp8"])
PER_GROUP = st.tuples(PER_CHANNEL, st.integers(1, 9).map("g{}".format), STORED).map("".join)
OF_ALL_ROWS = st.sampled_from(["w4t", "w3tz", "nvfp4", "w4g3sdq", "wnf4sdq"])
FLOATS = st.sampled_from(
    ["fp4", "fp8", "fp8_e5m2", "e2m0", "we3m1g4", "e6m1", "binary", "wternaryg5", "mxfp4", "mxfp8"]
)
SPELLINGS = PER_CHANNEL | PER_GROUP | FLOATS
SEEDS = st.integers(0, 2**16)

TEXTS = {"adaround": "adaround:iterations=30"}
"""Few steps promise what many do."""


def built(name: str) -> WeightRounding:
    return ROUNDINGS.build(TEXTS.get(name, name))


every_rounding = pytest.mark.parametrize("name", ROUNDINGS.names())
few = settings(max_examples=20)


@every_rounding
@few
@given(
    seed=SEEDS,
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12)),
    spellings=st.lists(SPELLINGS | OF_ALL_ROWS, min_size=1, max_size=4),
)
def test_what_is_kept_is_what_was_found(
    name: str, seed: int, shape: tuple[int, int], spellings: list[str]
) -> None:
    """The same numbers from what a result's file holds; of no row worse than those to nearest."""
    rows, moment = layer(*shape, seed=seed)
    formats = formats_of(*spellings)

    found = rounded(built(name), rows, moment, formats)

    for codes, told, grid in zip(found, formats, grids_of(rows, formats), strict=True):
        again = Codes.of_stored(codes.stored(rows), told)
        assert torch.equal(again.numbers(), codes.numbers())
        own, nearest = (
            errors(rows, c.numbers(), moment) for c in (codes, Codes.of(rows, told, grid))
        )
        # GPTQ promises nothing of a single row.
        assert name == "gptq" or (own <= nearest * (1 + 1e-4) + 1e-9).all()


@every_rounding
@few
@given(seed=SEEDS, spelling=SPELLINGS)
def test_rows_in_another_order_become_the_same_codes(name: str, seed: int, spelling: str) -> None:
    rows, moment = layer(5, 12, seed=seed)
    order, formats = torch.tensor([3, 0, 4, 1, 2]), formats_of(spelling)

    (found,) = rounded(built(name), rows, moment, formats)
    (other,) = rounded(built(name), rows[order], moment, formats)

    assert torch.equal(other.codes, found.codes[order])
    torch.testing.assert_close(other.scale, found.scale[order], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nearest", "gptq", "coordinate-descent"])
@few
@given(seed=SEEDS, spelling=FLOATS)
def test_a_weight_of_the_other_sign_has_codes_of_the_other_sign(
    name: str, seed: int, spelling: str
) -> None:
    """Floating-point grids are symmetric; the sigmoid of AdaRound is not, bit by bit."""
    rows, moment = layer(3, 12, seed=seed)

    found, other = (
        rounded(built(name), some, moment, formats_of(spelling))[0] for some in (rows, -rows)
    )

    assert torch.equal(other.codes, -found.codes)
    assert torch.equal(other.scale, found.scale)


@every_rounding
@few
@given(seed=SEEDS, exponent=st.integers(-12, 12), spelling=SPELLINGS | OF_ALL_ROWS)
def test_a_weight_times_a_power_of_two_has_the_same_codes(
    name: str, seed: int, exponent: int, spelling: str
) -> None:
    """And scales times that, bit for bit, in a dtype that holds them."""
    rows, moment = layer(3, 12, seed=seed)
    numerics = Numerics(group_scale="fp32")

    found, other = (
        rounded(built(name), rows * factor, moment, formats_of(spelling), numerics)[0]
        for factor in (1.0, 2.0**exponent)
    )

    assert torch.equal(other.codes, found.codes)
    assert torch.equal(other.scale, found.scale * 2.0**exponent)


@every_rounding
@few
@given(seed=SEEDS, exponent=st.integers(-60, 60), spelling=SPELLINGS)
def test_inputs_times_a_power_of_two_change_nothing(
    name: str, seed: int, exponent: int, spelling: str
) -> None:
    """Bit for bit: what counts is how inputs compare."""
    rows, moment = layer(3, 12, seed=seed)

    found, other = (
        rounded(built(name), rows, moment * factor, formats_of(spelling))[0]
        for factor in (1.0, 2.0**exponent)
    )

    assert torch.equal(other.codes, found.codes)
    assert torch.equal(other.scale, found.scale)


@every_rounding
@few
@given(seed=SEEDS, spelling=PER_CHANNEL | PER_GROUP | FLOATS)
def test_a_weight_on_its_grid_stays(name: str, seed: int, spelling: str) -> None:
    """Its error is 0, and no other is lower."""
    rows, moment = layer(3, 12, seed=seed)
    formats = formats_of(spelling)
    grids = grids_of(rows, formats)
    on_grid = Codes.of(rows, formats[0], grids[0]).numbers()

    (found,) = built(name).codes(on_grid, moment, formats, grids, Numerics())

    torch.testing.assert_close(found.numbers(), on_grid, rtol=1e-6, atol=0)


@every_rounding
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes_are_taken(name: str, dtype: torch.dtype) -> None:
    """As the float32 numbers that they are."""
    rows, moment = layer(4, 19)
    rows, formats = rows.to(dtype), formats_of("w4", "w3zg8", "fp4", "nvfp4")

    found = rounded(built(name), rows, moment, formats)

    expected = rounded(built(name), rows.float(), moment, formats)
    for codes, others in zip(found, expected, strict=True):
        assert torch.equal(codes.codes, others.codes)
        assert torch.equal(codes.scale, others.scale)
