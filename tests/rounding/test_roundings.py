"""What every rounding promises, by a list that a new one is added to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpq._support.bounds import LARGEST_SEED
from mpq.quantization.codes import Codes
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import integer_range, nearest_levels, round_float
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.tensor_format import Granularity, TensorFormat
from mpq.rounding import ROUNDINGS, AdaRound, Nearest, WeightRounding, _base
from tests.rounding.cases import errors, formats_of, grids_of, layer, rounded

# What is promised of learning holds after few steps, too.
ROUNDING = [AdaRound(iterations=60) if part is AdaRound else part() for part in ROUNDINGS]
NUMBERS = [NUMBER_FORMATS[name] for name in NUMBER_FORMATS if NUMBER_FORMATS[name].needs_scale]
NUMBERS = [number for number in NUMBERS if not number.is_for_inputs]
SPELLINGS = ["w2", "w3", "w3z", "w4t", "w4g5", "w3zg8", "w8", "w8z", "w5g16", "w4g64", "w2g1"]
INTEGERS = formats_of("w2", "w3z", "w4", "w8")

all_roundings = pytest.mark.parametrize("rounding", ROUNDING, ids=lambda r: str(r.name))


def simplest(number: NumberFormat) -> TensorFormat:
    """A scale for a block, if the number format has blocks, or else for a channel."""
    granularity = Granularity.GROUP if number.is_microscaling else Granularity.CHANNEL
    return TensorFormat(number, granularity, group_size=number.block or None)


def assert_are_codes(codes: Codes, rows: torch.Tensor, numerics: Numerics = OWN) -> None:
    """They are of the format, and scales are what is stored."""
    told = codes.tensor_format
    start = Codes.of(rows, told, grids_of(rows, [told], numerics)[0])
    own = codes.codes[:, : rows.shape[1]]
    if told.number.has_codebook:
        assert codes.levels is not None
        assert torch.equal(nearest_levels(own, codes.levels), own)
    elif told.number.is_float:
        assert torch.equal(round_float(own, told.number), own)
    else:
        low, high = integer_range(told.number, told.symmetric)
        assert torch.equal(own.round(), own)
        assert low <= int(own.min()) <= int(own.max()) <= high
    stored = numerics.group_scale if told.group_size else numerics.scale
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[stored]
    if told.number.is_microscaling or told.granularity is Granularity.TENSOR:
        assert torch.equal(codes.scale, start.scale)
    else:
        assert torch.equal(codes.scale.to(dtype).float(), codes.scale)
    assert (codes.scale != 0).all()
    if told.number.is_float or not told.symmetric or numerics.scale_sign == "positive":
        assert (codes.scale > 0).all()
    assert torch.equal(codes.zero_point, start.zero_point)
    assert torch.equal(codes.codes[:, rows.shape[1] :], start.codes[:, rows.shape[1] :])
    assert codes.numbers().isfinite().all()
    assert codes.numbers().shape == rows.shape


@all_roundings
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: str(n.name))
def test_codes_are_of_every_number_format(rounding: WeightRounding, number: NumberFormat) -> None:
    """In range, finite, with scales that their dtype holds."""
    rows, moment = layer(4, 40)

    (found,) = rounded(rounding, rows, moment, [simplest(number)])

    assert_are_codes(found, rows)


@all_roundings
@pytest.mark.parametrize("numerics", [OWN, Numerics("bf16", "bf16"), Numerics("fp16", "fp32")])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_codes_are_of_every_granularity(
    rounding: WeightRounding, spelling: str, numerics: Numerics
) -> None:
    """Also where the last group is short, or longer than a row."""
    rows, moment = layer(4, 18)

    (found,) = rounded(rounding, rows, moment, formats_of(spelling), numerics)

    assert_are_codes(found, rows, numerics)


@all_roundings
def test_it_is_never_worse_than_to_nearest_in_sum(rounding: WeightRounding) -> None:
    """On inputs that hang together, at every precision."""
    rows, moment = layer(32, 24)
    formats = formats_of("w2", "w3", "w4z", "w4g8", "w4t", "w6", "fp4", "fp8", "mxfp4", "nvfp4")

    found = rounded(rounding, rows, moment, formats)

    for ours, nearest in zip(found, rounded(Nearest(), rows, moment, formats), strict=True):
        own = errors(rows, ours.numbers(), moment).sum()
        assert own <= errors(rows, nearest.numbers(), moment).sum() * (1 + 1e-6)


@all_roundings
def test_the_same_comes_out_again(rounding: WeightRounding) -> None:
    """Bit for bit, whatever else drew random numbers; what came in is left alone."""
    rows, moment = layer(6, 33)
    before = rows.clone(), moment.clone()
    formats = formats_of("w3", "w4g5", "fp4")
    first = rounded(rounding, rows, moment, formats)
    torch.rand(3)

    second = rounded(rounding, rows, moment, formats)

    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
    assert torch.equal(rows, before[0])
    assert torch.equal(moment, before[1])


@all_roundings
def test_formats_do_not_know_of_each_other(rounding: WeightRounding) -> None:
    """Several at once, one of them twice, are what each is by itself."""
    rows, moment = layer(5, 37)
    formats = formats_of("w2", "w4g5", "w3z", "fp8", "w2", "mxfp4", "w4t", "w3zg5", "w4")

    found = rounded(rounding, rows, moment, formats)

    for codes, tensor_format in zip(found, formats, strict=True):
        (alone,) = rounded(rounding, rows, moment, [tensor_format])
        assert codes.tensor_format == tensor_format
        assert torch.equal(codes.codes, alone.codes)
        torch.testing.assert_close(codes.scale, alone.scale, rtol=1e-3, atol=0)


@all_roundings
def test_rows_do_not_know_of_each_other(
    rounding: WeightRounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many go through at once."""
    rows, moment = layer(5, 37)
    formats = formats_of("w2", "w4g5", "w3z", "fp4", "w4t")
    expected = rounded(rounding, rows, moment, formats)
    monkeypatch.setattr(_base, "NUMBERS_AT_ONCE", 1)

    found = rounded(rounding, rows, moment, formats)

    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.codes, other.codes)
        torch.testing.assert_close(one.scale, other.scale, rtol=1e-3, atol=0)


@all_roundings
def test_groups_of_rows_have_their_own_inputs(rounding: WeightRounding) -> None:
    """As in a grouped convolution: every group is a layer by itself."""
    rows, moment = layer(6, 11, num_groups=3)
    formats = formats_of("w2", "w3zg4", "fp4")

    found = rounded(rounding, rows, moment, formats)

    for group in range(3):
        some = slice(2 * group, 2 * group + 2)
        alone = rounded(rounding, rows[some], moment[group : group + 1], formats)
        for codes, expected in zip(found, alone, strict=True):
            assert torch.equal(codes.codes[some], expected.codes)
            torch.testing.assert_close(codes.scale[some], expected.scale, rtol=1e-3, atol=0)


@all_roundings
def test_a_single_input_is_rounded_to_nearest_or_better(rounding: WeightRounding) -> None:
    """Where scales may change, one number fits exactly."""
    rows, moment = layer(7, 1)
    formats = formats_of("w2", "w4z", "fp4", "w3g4")

    found = rounded(rounding, rows, moment, formats)

    for codes, nearest in zip(found, rounded(Nearest(), rows, moment, formats), strict=True):
        assert_are_codes(codes, rows)
        own, expected = (c.numbers().sub(rows).abs() for c in (codes, nearest))
        assert (own <= expected + 1e-6).all()


@all_roundings
def test_a_row_of_zeros_stays(rounding: WeightRounding) -> None:
    """And is no trouble to the others."""
    rows, moment = layer(4, 9)
    rows[1] = 0

    found = rounded(rounding, rows, moment, formats_of("w2", "w4z", "fp4", "w3g4", "mxfp8"))

    for codes in found:
        assert_are_codes(codes, rows)
        assert not codes.numbers()[1].any()


@all_roundings
def test_without_inputs_it_is_to_nearest_or_nearer(rounding: WeightRounding) -> None:
    """A layer that only reads zeros: nothing tells how its weights matter."""
    rows, moment = layer(4, 9)
    formats = formats_of("w2", "w4z", "fp4", "w3g4", "mxfp8")

    found = rounded(rounding, rows, torch.zeros_like(moment), formats)

    for codes, nearest in zip(found, rounded(Nearest(), rows, moment, formats), strict=True):
        assert_are_codes(codes, rows)
        own, expected = (c.numbers().sub(rows).square().sum(dim=1) for c in (codes, nearest))
        assert (own <= expected * (1 + 1e-5) + 1e-12).all()


@all_roundings
def test_inputs_that_are_always_zero_are_rounded_too(rounding: WeightRounding) -> None:
    """Within half a step, where the scale is that of rounding to nearest."""
    rows, moment = layer(4, 9)
    moment[:, 3] = moment[:, :, 3] = 0

    found = rounded(rounding, rows, moment, formats_of("w4", "w8", "w4g3", "fp8"))

    for codes in found:
        assert_are_codes(codes, rows)
    assert (found[1].numbers() - rows)[:, 3].abs().max() <= 0.51 * found[1].scale.max()


@all_roundings
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("energy", [1e-30, 1.0, 1e30])
def test_weights_and_inputs_may_be_large_or_small(
    rounding: WeightRounding, size: float, energy: float
) -> None:
    """Codes are codes, and as near as they are at a size of 1."""
    rows, moment = layer(4, 9)

    (found,) = rounded(rounding, rows * size, moment * energy, formats_of("w4"))

    assert_are_codes(found, rows * size)
    distance = (found.numbers() / size - rows).abs().max()
    (usual,) = rounded(rounding, rows, moment, formats_of("w4"))
    assert distance <= 1.5 * (usual.numbers() - rows).abs().max()


@all_roundings
@given(
    seed=st.integers(0, LARGEST_SEED),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12)),
    spelling=st.sampled_from(["w2", "w3z", "w4g3", "w2zg5", "w4t", "fp4", "fp8", "mxfp4"]),
    dead=st.booleans(),
)
def test_codes_of_any_layer(
    rounding: WeightRounding, seed: int, shape: tuple[int, int], spelling: str, dead: bool
) -> None:
    """Whatever the shapes, also where fewer examples came than there are inputs."""
    rows, moment = layer(*shape, seed=seed)
    if dead:
        last = rows[:1]
        moment = (last.t() @ last)[None]  # of rank 1

    (found,) = rounded(rounding, rows, moment, formats_of(spelling))

    assert_are_codes(found, rows)


def test_to_nearest_is_the_grid_of_its_range() -> None:
    """Bit for bit the codes that a weight has without any second moment."""
    rows, moment = layer(5, 13)

    for codes in rounded(Nearest(), rows, moment, INTEGERS):
        told = codes.tensor_format
        expected = Codes.of(rows, told, grids_of(rows, [told])[0])
        assert torch.equal(codes.codes, expected.codes)
        assert torch.equal(codes.scale, expected.scale)


@all_roundings
def test_some_rows_after_the_other(
    rounding: WeightRounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes of all rows at once, and scales but for the order of sums; of every granularity."""
    rows, moment = layer(12, 24)
    formats = formats_of("w2", "w3z", "w4g8", "w4t", "w4g8sdq", "nvfp4", "wnf4g5", "w3zfg5")
    grids = grids_of(rows, formats)
    expected = rounding.codes(rows, moment, formats, grids, OWN)
    monkeypatch.setattr(_base, "NUMBERS_AT_ONCE", 5 * 24 * len(formats))

    parts = list(rounding.codes_in_parts(rows, moment, formats, grids, OWN))

    assert [(some.start, some.stop) for some, _ in parts] == [(0, 5), (5, 10), (10, 12)]
    for place, whole in enumerate(expected):
        codes, scale, point = (
            torch.cat([getattr(found[place], name) for _, found in parts])
            for name in ("codes", "scale", "zero_point")
        )
        assert torch.equal(codes, whole.codes)
        assert torch.equal(point, whole.zero_point)
        torch.testing.assert_close(scale, whole.scale, rtol=1e-6, atol=0)
