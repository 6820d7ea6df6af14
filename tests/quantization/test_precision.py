"""Spellings are read and written back, and stored bits count every scale."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import PrecisionError
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

TOKENS = (
    {str(bits): f"int{bits}" for bits in range(2, 16)}
    | {f"int{bits}": f"int{bits}" for bits in range(2, 16)}
    | {"16": "fp16", "fp16": "fp16", "32": "fp32", "fp32": "fp32", "bf16": "bf16"}
    | {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
    | {"fp4": "fp4_e2m1", "fp4_e2m1": "fp4_e2m1", "int16": "int16"}
    | {"e2m1": "fp4_e2m1", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2"}
    | {"e3m2": "e3m2", "fp6_e3m2": "e3m2", "e2m0": "e2m0", "e6m1": "e6m1"}
)
"""Every way of writing a number format, and its name."""
WIDE = ("fp16", "fp32", "bf16")
"""Formats without a scale."""
FLOATS = ("fp", "e")
"""What names of formats without a zero point begin with."""


@dataclass(frozen=True)
class Spelled:
    """A spelling and what it means: (name, granularity, symmetric, group) twice."""

    text: str
    weight: tuple[str, str, bool, int | None]
    activation: tuple[str, str, bool, int | None]


@st.composite
def spellings(draw: st.DrawFn) -> Spelled:
    """Every spelling that the module describes, composed from its parts."""
    token = draw(st.sampled_from(sorted(TOKENS)))
    name, text, granularity, symmetric, group = TOKENS[token], f"w{token}", "none", True, None
    if name not in WIDE:
        granularity = draw(st.sampled_from(["per_channel", "per_tensor", "per_group"]))
        symmetric = name.startswith(FLOATS) or draw(st.booleans())
        group = draw(st.integers(1, 4096)) if granularity == "per_group" else None
        text += "t" if granularity == "per_tensor" else ""
        text += "" if symmetric else "z"
        text += f"g{group}" if group else ""
    weight = (name, granularity, symmetric, group)
    if not draw(st.booleans()):
        return Spelled(text, weight, ("fp32", "none", True, None))
    token = draw(st.sampled_from(sorted(TOKENS)))
    name, flags, granularity, symmetric = TOKENS[token], "", "none", True
    if name not in WIDE:
        flags = draw(st.sampled_from(["", "s", "d", "sd"]))
        granularity = "per_token" if "d" in flags else "per_tensor"
        symmetric = name.startswith(FLOATS) or "s" in flags
    return Spelled(f"{text}a{token}{flags}", weight, (name, granularity, symmetric, None))


def parts(tensor: TensorFormat) -> tuple[str, str, bool, int | None]:
    """A tensor's format as plain values."""
    return tensor.number.name, tensor.granularity.value, tensor.symmetric, tensor.group_size


@given(spelled=spellings())
def test_every_spelling_is_read_part_by_part(spelled: Spelled) -> None:
    """Number formats, scales, zero points and groups are those that the text names."""
    precision = Precision.parse(spelled.text)

    assert parts(precision.weight) == spelled.weight
    assert parts(precision.activation) == spelled.activation


@given(spelled=spellings())
def test_a_precision_is_written_so_that_it_reads_back(spelled: Spelled) -> None:
    """``parse(str(p))`` is ``p``, and one precision has one spelling."""
    precision = Precision.parse(spelled.text)

    again = Precision.parse(str(precision))

    assert again == precision
    assert hash(again) == hash(precision)
    assert str(again) == str(precision)
    assert repr(precision) == f"Precision({str(precision)!r})"


@given(spelled=spellings())
def test_case_and_surrounding_space_do_not_matter(spelled: Spelled) -> None:
    """A user may write ``W4A8`` and leave a space around it."""
    assert Precision.parse(f"  {spelled.text.upper()} ") == Precision.parse(spelled.text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        *((f"int{bits}", f"w{bits}a{bits}") for bits in range(2, 16)),
        *((f"w{bits}", f"w{bits}a32") for bits in range(2, 16)),
        ("fp8", "fp8_e4m3"),
        ("fp8_e4m3", "fp8_e4m3"),
        ("fp8_e5m2", "fp8_e5m2"),
        ("fp4", "fp4_e2m1"),
        ("fp4_e2m1", "fp4_e2m1"),
        ("e2m1", "fp4_e2m1"),
        ("we4m3ae5m2", "wfp8_e4m3afp8_e5m2"),
        ("e3m2", "e3m2"),
        ("fp6_e3m2", "e3m2"),
        ("we3m2", "we3m2a32"),
        ("wfp6_e3m2g32a16", "we3m2g32a16"),
        ("we2m0tae3m4d", "we2m0tae3m4d"),
        ("binary", "wbinarya32"),
        ("nf4", "wnf4a32"),
        ("wnf3g64a16", "wnf3g64a16"),
        ("wbinarytafp8", "wbinarytafp8_e4m3"),
        ("wternaryg64a16", "wternaryg64a16"),
        ("bf16", "bf16"),
        ("fp16", "fp16"),
        ("w16a16", "fp16"),
        ("fp32", "fp32"),
        ("w32a32", "fp32"),
        ("w32", "fp32"),
        ("w16", "w16a32"),
        ("w8aint16", "w8aint16"),
        ("w8aint16s", "w8aint16s"),
        ("w4g128aint16sd", "w4g128aint16sd"),
        ("int16", "wint16aint16"),
        ("wint16tza16", "wint16tza16"),
        ("wfp8a16", "wfp8_e4m3a16"),
        ("wfp8afp8", "fp8_e4m3"),
        ("wfp8afp8d", "wfp8_e4m3afp8_e4m3d"),
        ("wfp8tafp8", "wfp8_e4m3tafp8_e4m3"),
        ("wfp8afp8s", "fp8_e4m3"),
        ("wint4aint8", "w4a8"),
        ("w4g128a16", "w4g128a16"),
        ("w4zg128", "w4zg128a32"),
        ("w8tza8sd", "w8tza8sd"),
        ("wbf16a8", "wbf16a8"),
    ],
)
def test_shorthands_stand_for_the_full_spelling(text: str, canonical: str) -> None:
    """A name alone stands for weight and activation; 16 and 32 stand for fp16 and fp32."""
    precision = Precision.parse(text)

    assert str(precision) == canonical
    assert precision == Precision.parse(canonical)


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("w8a8", ("int8", "per_channel", True, None), ("int8", "per_tensor", False, None)),
        ("w4g32", ("int4", "per_group", True, 32), ("fp32", "none", True, None)),
        ("w4zg64a8d", ("int4", "per_group", False, 64), ("int8", "per_token", False, None)),
        ("w8aint16", ("int8", "per_channel", True, None), ("int16", "per_tensor", False, None)),
        ("w8aint16s", ("int8", "per_channel", True, None), ("int16", "per_tensor", True, None)),
        ("w8aint16d", ("int8", "per_channel", True, None), ("int16", "per_token", False, None)),
        ("w8a16", ("int8", "per_channel", True, None), ("fp16", "none", True, None)),
        ("w3ta6s", ("int3", "per_tensor", True, None), ("int6", "per_tensor", True, None)),
        (
            "fp8",
            ("fp8_e4m3", "per_channel", True, None),
            ("fp8_e4m3", "per_tensor", True, None),
        ),
    ],
)
def test_defaults_are_those_that_the_table_of_spellings_states(
    text: str,
    weight: tuple[str, str, bool, int | None],
    activation: tuple[str, str, bool, int | None],
) -> None:
    """Weights are symmetric per channel, activations affine per tensor, floats symmetric."""
    precision = Precision.parse(text)

    assert parts(precision.weight) == weight
    assert parts(precision.activation) == activation


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "w",
            "a8",
            "8",
            "16",
            "w1a8",
            "w17a8",
            "w4a",
            "w4a1",
            "w4 a8",
            "w4g",
            "w4ga8",
            "int1",
        ),
        *(
            "int17",
            "w8aint17",
            "w8aint16ds",
            "fp2",
            "w4d",
            "w4s",
            "w4g-1",
            "w4g1.5",
            "w4zt",
            "w4g128z",
            "w4a8ds",
        ),
        *("w4a8x", "xw4a8", "w4a8w4", "fp8a8", "w4a8g128", "w4a8t", "w4a8z", "é", "w00", "w08"),
    ],
)
def test_what_is_no_precision_is_refused_with_help(text: str) -> None:
    """The message repeats the text and says how to write one."""
    with pytest.raises(PrecisionError, match=r"is not a precision: write w<bits>a<bits>") as error:
        Precision.parse(text)

    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w4tg128", "'t' .* and 'g128' exclude each other"),
        ("w16t", "fp16 has no scale, so no 'tensor'"),
        ("w32z", "fp32 has no scale, so no 'zero'"),
        ("w16g128a16", "fp16 has no scale, so no 'group'"),
        ("wbf16g32", "bf16 has no scale, so no 'group'"),
        ("w8a16s", "fp16 has no scale, so no 'symmetric'"),
        ("w8a16d", "fp16 has no scale, so no 'dynamic'"),
        ("w8abf16d", "bf16 has no scale, so no 'dynamic'"),
        ("wfp8za8", "fp8_e4m3 is symmetric: it has no zero point"),
        ("w4g0", "a group has at least 1 weight; got 0"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(text: str, message: str) -> None:
    """A spelling of the right form that makes no sense says which part makes none."""
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(text)


@pytest.mark.parametrize(
    ("number", "granularity", "symmetric", "group", "message"),
    [
        ("int16", Granularity.NONE, True, None, "int16 needs a scale; got 'none'"),
        ("int8", Granularity.NONE, True, None, "int8 needs a scale; got 'none'"),
        ("fp16", Granularity.CHANNEL, True, None, "fp16 has no scale; got 'per_channel'"),
        ("int4", Granularity.GROUP, True, None, "a group size goes with"),
        ("int4", Granularity.CHANNEL, True, 32, "a group size goes with"),
        ("int4", Granularity.GROUP, True, -1, "at least 1 weight; got -1"),
        ("fp8_e5m2", Granularity.TENSOR, False, None, "fp8_e5m2 is symmetric"),
    ],
)
def test_a_format_built_by_hand_is_checked_as_well(
    number: str, granularity: Granularity, symmetric: bool, group: int | None, message: str
) -> None:
    """A ``TensorFormat`` that exists makes sense, wherever it comes from."""
    with pytest.raises(PrecisionError, match=message):
        TensorFormat(NUMBER_FORMATS[number], granularity, symmetric, group)


@pytest.mark.parametrize(
    ("text", "elements", "channels", "bits"),
    [
        ("fp32", 1000, 10, 32_000),
        ("bf16", 1000, 10, 16_000),
        ("w4t", 1000, 10, 4_000 + 32),  # one scale
        ("w4tz", 1000, 10, 4_000 + 32 + 4),  # and its zero point of 4 bits
        ("w4", 1000, 10, 4_000 + 320),  # ten scales
        ("w4z", 1000, 10, 4_000 + 320 + 40),
        ("fp8", 1000, 10, 8_000 + 320),
        ("fp4", 1000, 10, 4_000 + 320),
        ("w4g50", 1000, 10, 4_000 + 20 * 16),  # 2 groups in each of 10 channels
        ("w4g32", 1000, 10, 4_000 + 40 * 16),  # 100 weights: 32 + 32 + 32 + 4
        ("w4g99", 1000, 10, 4_000 + 20 * 16),  # 99 + 1
        ("w4g100", 1000, 10, 4_000 + 10 * 16),
        ("w4g128", 1000, 10, 4_000 + 10 * 16),  # a group is never wider than its channel
        ("w3zg32", 1000, 10, 3_000 + 40 * (16 + 3)),
        ("w2g1", 8, 2, 16 + 8 * 16),
        ("wint16tz", 1000, 10, 16_000 + 32 + 16),
    ],
)
def test_stored_bits_count_scales_and_zero_points(
    text: str, elements: int, channels: int, bits: int
) -> None:
    """Scales have 32 bits per tensor or channel, 16 per group; a zero point those of a number."""
    weight = Precision.parse(text).weight

    assert weight.stored_bits(elements, channels) == bits


@pytest.mark.parametrize(
    ("text", "bits"),
    [("w8a8", 6_400 + 32 + 8), ("w8a8s", 6_432), ("w8a8d", 6_400), ("w8", 25_600),
     ("w8aint16", 12_800 + 32 + 16), ("w8aint16s", 12_832), ("w8a16", 12_800)],
)  # fmt: skip
def test_stored_bits_of_an_activation(text: str, bits: int) -> None:
    """A static activation has one scale; a dynamic one stores none; none at all stays fp32."""
    activation = Precision.parse(text).activation

    assert activation.stored_bits(800) == bits


def test_a_weight_of_one_channel_has_one_scale() -> None:
    """Which is what is counted where nobody says how many there are."""
    assert Precision.parse("w4").weight.stored_bits(100) == 400 + 32


def test_only_fp32_is_exact() -> None:
    """Fp32 stands for the original numbers; every other format rounds them."""
    exact = [name for name in TOKENS if Precision.parse(f"w{name}").weight.is_exact]

    assert exact == ["32", "fp32"]
    assert ORIGINAL.weight.is_exact
    assert ORIGINAL.activation.is_exact


def test_precisions_are_values() -> None:
    """Two readings of one format are equal, hash alike and are one key of a dict."""
    spelled = ["w8a8", "int8", "w8a8s", "wint8aint8"]

    distinct = {Precision.parse(text) for text in spelled}

    assert {str(precision) for precision in distinct} == {"w8a8", "w8a8s"}
    assert len(distinct) == 2


def test_a_group_is_of_1_to_two_to_the_31_weights() -> None:
    """Both ends are allowed, what is beyond is not."""
    assert Precision.parse("w4g1a8").weight.group_size == 1
    assert Precision.parse(f"w4g{2**31}a8").weight.group_size == 2**31
    for size in (0, 2**31 + 1):
        with pytest.raises(PrecisionError, match=f"got {size}"):
            replace(Precision.parse("w4g2a8").weight, group_size=size)


def test_a_group_is_read_as_a_number_up_to_20_digits() -> None:
    """Up to there the message says what a group has at most; more digits are no precision."""
    with pytest.raises(PrecisionError, match="a group has at most 2147483648 weights; got 9+$"):
        Precision.parse("w4g" + "9" * 20)
    with pytest.raises(PrecisionError, match="'w4g9+' is not a precision"):
        Precision.parse("w4g" + "9" * 21)
