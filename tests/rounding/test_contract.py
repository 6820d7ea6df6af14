"""What every rounding promises, at every format that needs a scale."""

import pytest
import torch

from mpq import ROUNDINGS
from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import integer_range, round_float
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Granularity
from mpq.rounding import WeightRounding, _base
from tests.rounding.layers import Layer, errors_of, layer, nearest_codes, rounded

INTEGERS = ["w2", "w3", "w5", "w8", "w3z", "w8z", "w4t", "w4tz", "w4g5", "w3zg8", "w2g100"]
OWN_FORMATS = [
    f"w{number.name}" for number in NUMBER_FORMATS.own if number.needs_scale and number.is_float
]
SPELLINGS = INTEGERS + OWN_FORMATS + ["wfp4t", "wfp8g7"]
NAMES = ROUNDINGS.names()
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

every_rounding = pytest.mark.parametrize("name", NAMES)
every_format = pytest.mark.parametrize("spelling", SPELLINGS)


def built(name: str) -> WeightRounding:
    """By name; AdaRound takes few steps, which promise the same."""
    return ROUNDINGS.build("adaround:num_steps=40" if name == "adaround" else name)


def of_name(name: str, of: Layer, spelling: str, numerics: Numerics = OWN) -> Codes:
    """One format's codes."""
    return rounded(built(name), of, [spelling], numerics)[0]


def same(one: Codes, other: Codes) -> bool:
    """Whether codes, scales and zero points are the same bits."""
    return torch.equal(one.scale, other.scale) and same_codes(one, other)


def same_codes(one: Codes, other: Codes) -> bool:
    """Whether codes and zero points are the same, and scales but for the order of sums."""
    return (
        torch.equal(one.codes, other.codes)
        and torch.equal(one.zero_point, other.zero_point)
        # Products of matrices of other shapes add in another order.
        and torch.allclose(one.scale, other.scale, rtol=1e-6, atol=0)
    )


def is_power_of_two(scale: torch.Tensor) -> bool:
    """Of every one."""
    return bool((torch.frexp(scale)[0] == 0.5).all())


@every_rounding
@every_format
def test_codes_are_codes_of_the_format(name: str, spelling: str) -> None:
    """Whole and within the range, or numbers that the format holds; what fills up stands for 0."""
    found = of_name(name, layer(6, 19), spelling)

    number, symmetric = found.tensor_format.number, found.tensor_format.symmetric
    if number.is_float:
        assert torch.equal(round_float(found.codes, number), found.codes)
    else:
        low, high = integer_range(number, symmetric)
        assert torch.equal(found.codes.round().clamp(low, high), found.codes)
    assert found.num_inputs == 19
    assert found.numbers().shape == (6, 19)
    assert bool(found.numbers().isfinite().all())
    last = found.codes[:, 19:] - found.zero_point[:, -1:]
    assert torch.equal(last, torch.zeros_like(last))


@every_rounding
@every_format
@pytest.mark.parametrize("numerics", [Numerics(), Numerics("fp16", "bf16")], ids=str)
def test_scales_are_what_their_dtype_holds(name: str, spelling: str, numerics: Numerics) -> None:
    """Powers of two, fp8, or the dtype that the numerics say."""
    found = of_name(name, layer(6, 19), spelling, numerics)

    assert bool((found.scale > 0).all())
    number = found.tensor_format.number
    if number.block_scale == "e8m0":
        assert is_power_of_two(found.scale)
    elif number.block_scale == "e4m3":
        # A power of two for the whole weight, and four digits.
        mantissa = torch.frexp(found.scale)[0] * 16
        assert torch.equal(mantissa.round(), mantissa)
    else:
        is_group = found.tensor_format.granularity is Granularity.GROUP
        dtype = DTYPES[numerics.group_scale if is_group else numerics.scale]
        assert torch.equal(found.scale.to(dtype).float(), found.scale)


@every_rounding
@pytest.mark.parametrize("spelling", ["w4t", "w4tz", "wmxfp4", "wmxfp8", "wnvfp4"])
def test_scales_that_others_share_stay(name: str, spelling: str) -> None:
    """Of a whole weight, and of blocks, whose scales are powers of two or have one more scale."""
    of = layer(6, 40)

    found = of_name(name, of, spelling)

    assert torch.equal(found.scale, nearest_codes(of, spelling).scale)


@every_rounding
@every_format
def test_the_error_is_not_above_rounding_to_nearests(name: str, spelling: str) -> None:
    """Of no row, by those that choose the better; of GPTQ only in sum."""
    of = layer(8, 24, seed=3)

    found, nearest = of_name(name, of, spelling), nearest_codes(of, spelling)

    errors, of_nearest = (errors_of(of, codes.numbers()) for codes in (found, nearest))
    assert errors.sum() <= of_nearest.sum() * (1 + 1e-5)
    if name != "gptq":
        assert (errors <= of_nearest * (1 + 1e-4)).all()


@every_rounding
def test_a_second_time_gives_the_same_and_the_weight_stays(name: str) -> None:
    of = layer(6, 19)
    before = of.rows.clone(), of.moment.clone()

    first, second = (rounded(built(name), of, SPELLINGS) for _ in range(2))

    assert all(map(same, first, second))
    assert torch.equal(of.rows, before[0])
    assert torch.equal(of.moment, before[1])


@every_rounding
def test_formats_at_once_are_those_one_at_a_time(name: str) -> None:
    """Also the same format twice."""
    of, spellings = layer(6, 19), [*SPELLINGS, "w3z", "w5"]

    together = rounded(built(name), of, spellings)

    alone = [of_name(name, of, spelling) for spelling in spellings]
    pairs = zip(spellings, together, alone, strict=True)
    assert [spelling for spelling, *pair in pairs if not same_codes(*pair)] == []
    assert same_codes(together[spellings.index("w3z")], together[-2])


@every_rounding
def test_some_rows_at_a_time_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = layer(6, 19)
    whole = rounded(built(name), of, SPELLINGS)

    monkeypatch.setattr(_base, "NUMBERS_AT_ONCE", 2 * 19 * 7)
    pieces = rounded(built(name), of, SPELLINGS)

    pairs = zip(SPELLINGS, whole, pieces, strict=True)
    assert [spelling for spelling, *pair in pairs if not same_codes(*pair)] == []


@every_rounding
@every_format
def test_groups_of_rows_have_second_moments_of_their_own(name: str, spelling: str) -> None:
    """As if each were a layer, where the scales that they start from are the same."""
    of = layer(6, 19, num_groups=3)

    found = rounded(built(name), of, [spelling])[0]

    for group, matrix in enumerate(of.moment):
        alone = rounded(built(name), Layer(of.rows, matrix[None]), [spelling])[0]
        mine = slice(2 * group, 2 * group + 2)
        assert torch.equal(found.codes[mine], alone.codes[mine])
        torch.testing.assert_close(found.scale[mine], alone.scale[mine], rtol=1e-6, atol=0)


@every_rounding
@every_format
def test_a_single_input_is_rounded_to_nearest_on_its_grid(name: str, spelling: str) -> None:
    """There is nothing that could make its error good."""
    of = layer(5, 1)

    found = of_name(name, of, spelling)

    errors = errors_of(of, found.numbers())
    assert (errors <= errors_of(of, nearest_codes(of, spelling).numbers()) * (1 + 1e-6)).all()


@every_rounding
@every_format
def test_a_row_of_zeros_stays(name: str, spelling: str) -> None:
    of = layer(4, 19)
    of.rows[1] = 0

    found = of_name(name, of, spelling)

    assert torch.equal(found.numbers()[1], torch.zeros(19))


@pytest.mark.parametrize("name", ["nearest", "gptq", "adaround"])
@every_format
def test_without_inputs_it_is_rounding_to_nearest(name: str, spelling: str) -> None:
    """A layer that only reads zeros: every rounding is as good."""
    of = Layer(layer(4, 19).rows, torch.zeros(1, 19, 19))

    assert same(of_name(name, of, spelling), nearest_codes(of, spelling))


@every_format
def test_without_inputs_scales_are_those_of_the_weights_own_error(spelling: str) -> None:
    """Coordinate descent may change scales, which then lower the weight's squared error."""
    rows = layer(4, 19).rows
    as_if = Layer(rows, torch.eye(19)[None])

    found = of_name("coordinate-descent", Layer(rows, torch.zeros(1, 19, 19)), spelling)

    nearest = errors_of(as_if, nearest_codes(as_if, spelling).numbers())
    assert (errors_of(as_if, found.numbers()) <= nearest * (1 + 1e-5)).all()


@every_rounding
@every_format
def test_inputs_that_are_always_zero_are_no_obstacle(name: str, spelling: str) -> None:
    of = layer(4, 19)
    of.moment[:, 3:9] = 0
    of.moment[:, :, 3:9] = 0

    found = of_name(name, of, spelling)

    assert bool(found.numbers().isfinite().all())
    nearest = errors_of(of, nearest_codes(of, spelling).numbers())
    assert errors_of(of, found.numbers()).sum() <= nearest.sum() * (1 + 1e-5)


@every_rounding
@pytest.mark.parametrize("spelling", ["w3", "w4zg5", "wfp4"])
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-20, 2.0**60])
def test_the_unit_of_the_inputs_does_not_matter(name: str, spelling: str, factor: float) -> None:
    """Bit for bit: squares of small inputs do not vanish."""
    of = layer(4, 19)

    found = of_name(name, Layer(of.rows, of.moment * factor), spelling)

    assert same(found, of_name(name, of, spelling))


@every_rounding
@pytest.mark.parametrize("spelling", ["w3", "w4z", "wfp4"])
def test_errors_beyond_float32_leave_codes_all_the_same(name: str, spelling: str) -> None:
    """Their squares are infinite, and no rounding is better than another."""
    of = layer(4, 19)
    of.rows.mul_(2.0**90)

    found = of_name(name, of, spelling)

    if not found.tensor_format.number.is_float:
        low, high = integer_range(found.tensor_format.number, found.tensor_format.symmetric)
        assert torch.equal(found.codes.round().clamp(low, high), found.codes)
    assert bool(found.numbers().isfinite().all())


@every_rounding
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes_are_taken(name: str, dtype: torch.dtype) -> None:
    rows = layer(4, 19).rows.to(dtype)
    moment = layer(4, 19).moment

    found = rounded(built(name), Layer(rows, moment), ["w4", "w3zg8"])

    expected = rounded(built(name), Layer(rows.float(), moment), ["w4", "w3zg8"])
    assert all(map(same, found, expected))


@pytest.mark.parametrize("name", ["gptq", "coordinate-descent", "adaround"])
@pytest.mark.parametrize("damping", ["0", "-1", "1e7", "inf"])
def test_a_damping_that_leaves_nothing_to_invert_is_refused(name: str, damping: str) -> None:
    with pytest.raises(InputError, match=f"{name} needs a damping above 0"):
        ROUNDINGS.build(f"{name}:damping={damping}")


@pytest.mark.parametrize("name", ["gptq", "coordinate-descent"])
def test_a_damping_that_float32_loses_is_refused(name: str) -> None:
    """With the option that mends it."""
    vector = torch.randn(30, generator=torch.Generator().manual_seed(0))
    of = Layer(layer(2, 30).rows, torch.outer(vector, vector)[None])

    with pytest.raises(InputError, match="choose a larger one, such as gptq:damping=0.01"):
        rounded(ROUNDINGS.build(f"{name}:damping=1e-30"), of, ["w4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coordinate-descent:rounds=-1", "rounds and sweeps from 0 on; got -1, 2"),
        ("coordinate-descent:sweeps=-3", "rounds and sweeps from 0 on; got 2, -3"),
        ("adaround:num_steps=0", "num_steps from 1 on; got 0"),
        ("adaround:learning_rate=0", "learning_rate above 0"),
        ("adaround:regularizer=-1", "regularizer from 0 on"),
    ],
)
def test_options_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ROUNDINGS.build(text)
