"""What holds of any layer and any formats, drawn at random."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq import ROUNDINGS
from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.rounding import WeightRounding
from tests.rounding.layers import (
    Layer,
    errors_of,
    format_of,
    layer,
    layers,
    nearest_codes,
    rounded,
)

BITS = st.integers(2, 8).map(str)
GROUPS = st.integers(1, 9).map("g{}".format)
SPELLINGS = st.one_of(
    st.sampled_from(["wfp4", "wfp8", "wfp8_e5m2", "wmxfp4", "wmxfp8", "wnvfp4"]),
    st.tuples(BITS, st.sampled_from(["", "t"]), st.sampled_from(["", "z"])).map(
        lambda parts: "w" + "".join(parts)
    ),
    st.tuples(BITS, st.sampled_from(["", "z"]), GROUPS).map(lambda parts: "w" + "".join(parts)),
)
TEXTS = {"adaround": "adaround:num_steps=20"}

every_rounding = pytest.mark.parametrize("name", ROUNDINGS.names())


def built(name: str) -> WeightRounding:
    """By name; AdaRound takes few steps, which promise the same."""
    return ROUNDINGS.build(TEXTS.get(name, name))


@every_rounding
@settings(max_examples=40)
@given(of=layers(), spellings=st.lists(SPELLINGS, min_size=1, max_size=4))
def test_what_is_kept_is_what_was_found(name: str, of: Layer, spellings: list[str]) -> None:
    """Numbers are finite, and the same from what a result's file holds."""
    found = rounded(built(name), of, spellings)

    for codes, spelling in zip(found, spellings, strict=True):
        assert codes.tensor_format == format_of(spelling)
        assert bool(codes.numbers().isfinite().all())
        again = Codes.of_stored(codes.stored(of.rows), codes.tensor_format)
        assert torch.equal(again.numbers(), codes.numbers())


@pytest.mark.parametrize("name", [n for n in ROUNDINGS.names() if n != "gptq"])
@settings(max_examples=40)
@given(of=layers(), spellings=st.lists(SPELLINGS, min_size=1, max_size=4))
def test_no_row_is_worse_than_rounded_to_nearest(
    name: str, of: Layer, spellings: list[str]
) -> None:
    for codes, spelling in zip(rounded(built(name), of, spellings), spellings, strict=True):
        errors, others = (
            errors_of(of, each.numbers()) for each in (codes, nearest_codes(of, spelling))
        )
        assert (errors <= others * (1 + 1e-4) + 1e-9 * others.max()).all()


@every_rounding
@settings(max_examples=20)
@given(random=st.integers(0, 2**16), spelling=SPELLINGS.filter(lambda s: "t" not in s))
def test_rows_do_not_meet(name: str, random: int, spelling: str) -> None:
    """In another order they become the same codes, in that order."""
    # The scale that a weight in nvfp4 has beside its blocks' is of all rows.
    of = layer(5, 12, seed=random)
    order = torch.tensor([3, 0, 4, 1, 2])

    found = rounded(built(name), of, [spelling])[0]

    other = rounded(built(name), Layer(of.rows[order], of.moment), [spelling])[0]
    assert torch.equal(other.codes, found.codes[order])
    torch.testing.assert_close(other.scale, found.scale[order], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nearest", "gptq", "coordinate-descent"])
@settings(max_examples=20)
@given(random=st.integers(0, 2**16), spelling=st.sampled_from(["wfp4", "wfp8", "wmxfp4"]))
def test_a_weight_of_the_other_sign_has_codes_of_the_other_sign(
    name: str, random: int, spelling: str
) -> None:
    """Floating-point grids are symmetric; the shares that AdaRound learns are not, bit by bit."""
    of = layer(3, 12, seed=random)

    found, other = (
        rounded(built(name), Layer(rows, of.moment), [spelling])[0] for rows in (of.rows, -of.rows)
    )

    assert torch.equal(other.codes, -found.codes)


@every_rounding
@settings(max_examples=20)
@given(random=st.integers(0, 2**16), exponent=st.integers(-12, 12), spelling=SPELLINGS)
def test_a_weight_times_a_power_of_two_has_the_same_codes(
    name: str, random: int, exponent: int, spelling: str
) -> None:
    """And scales times that, in dtypes that hold them."""
    of = layer(3, 12, seed=random)
    numerics = Numerics(group_scale="fp32")

    found, other = (
        rounded(built(name), Layer(of.rows * factor, of.moment), [spelling], numerics)[0]
        for factor in (1.0, 2.0**exponent)
    )

    assert torch.equal(other.codes, found.codes)
    assert torch.equal(other.scale, found.scale * 2.0**exponent)


@every_rounding
@settings(max_examples=20)
@given(random=st.integers(0, 2**16), bits=BITS)
def test_a_weight_on_its_grid_stays(name: str, random: int, bits: str) -> None:
    """Its error is 0, and no other is lower."""
    of = layer(3, 12, seed=random)
    codes = nearest_codes(of, f"w{bits}")
    on_grid = Layer(codes.numbers(), of.moment)

    found = rounded(built(name), on_grid, [f"w{bits}"], weight_range="minmax")[0]

    # By extremes the grid is another one where no code reaches its end.
    reaches = (codes.codes == -(2.0 ** (int(bits) - 1))).any(dim=1)
    np.testing.assert_array_less(errors_of(on_grid, found.numbers())[reaches.numpy()], 1e-8)
