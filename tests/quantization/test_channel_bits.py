"""Output channels with bits of their own: spelled, counted, rounded, kept."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import PrecisionError
from mpq.quantization.channel_bits import ChannelBits
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import of_channels

SPELLED = [
    "w[2,3,4]:0120a8",
    "w[1,2,8]g8:0120a16",
    "w[2,4]g64:01a16",
    "w[3,8]zg32sbf16:100a32",
    "w[2,4]:10/4x010a8",
    "w[0,1,4]:0120a16",
    "w[0,4]zg16:01a16",
    "w[0,1]g16:01a16",
]
OF_INPUTS = [
    "w[2,4]:i40/16x010a16", "w[2,3,8]g8:i40/16x021a8", "w[2,4]zfg8:i40/24x10a16",
    "w[2,4,8]zg16:g40/16x010012210100a16", "w[1,2,8]g8:i40/16x021a8",
    "w[1,4]g16:g40/16x010110110100a16", "w[1,2]:i40/16x010a16", "w[0,1,4]:i40/16x210a16",
    "w[0,1]:i40/16x010a16", "w[0,4]zg16:g40/16x010110110100a16", "w[2,4]:i0101a32",
]  # fmt: skip
SPELLED += OF_INPUTS
INTEGERS = [NUMBER_FORMATS[f"int{bits}"] for bits in (2, 3, 4, 8)]


@pytest.mark.parametrize("text", SPELLED)
def test_what_is_written_is_read(text: str) -> None:
    """The spelling says all."""
    found = Precision.parse(text)

    assert str(found) == text
    assert Precision.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("w[2,4]a8", "a digit for each"),
        ("w4:01a8", "a digit for each"),
        ("w[2,4]t:01", "scales of their own"),
        ("w[2,4]g64sfp8:01", "scales of their own"),
        ("w[2,4]:00", "each width occurs"),
        ("w[2,4]:02", "each width occurs"),
        ("w[4,2]:01", "rising"),
        ("w[2,9]:01", "up to 8 bits"),
        ("w[2,4]:9/4x01", "9 channels in blocks of 4"),
        ("w4a[0,4]dg8:i01", "is not a precision"),
        ("w4a[0,4]dg8:20/10x01", "integers of 2 bits on: zero"),
        ("w4a[1,4]dg8:20/10x01", "integers of 2 bits on: binary"),
        ("w[1,4]z:01", "signs have no zero point"),
        ("w[1,4]zfg8:01", "signs have no zero point"),
        ("w[2,4]:40000000000/20000000000x01", "at most 16777216 output channels"),
        ("w[2,4]:i40000000000/20000000000x01", "at most 16777216 inputs"),
        ("w[2,4]:i9/4x01", "9 inputs of a row in blocks of 4"),
        ("w[2,4]g8:g20/8x0101", "need 3 codes"),
        ("w[2,4]g8:i20/12x01", "multiple of 8"),
        ("w[2,4]g4:g20/8x010", "groups of 8"),
        ("w[2,4]:g20/8x010", "groups of 8"),
        ("w[2,4]z:i20/12x01", "not its zero point"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, why: str) -> None:
    """With the reason."""
    with pytest.raises(PrecisionError, match=why):
        Precision.parse(text)


def test_a_column_for_every_block() -> None:
    """Formats that nobody has are left out; one alone is no mix."""
    mixed = ChannelBits.of(INTEGERS, [3, 0, 3], num_channels=5, block=2)

    assert isinstance(mixed, ChannelBits)
    assert [number.bits for number in mixed.numbers] == [2, 8]
    assert mixed.columns.tolist() == [1, 1, 0, 0, 1]
    assert mixed.mean_bits == pytest.approx(28 / 5)
    assert mixed.code_bits == 3
    assert ChannelBits.of(INTEGERS, [1, 1, 1]) == NUMBER_FORMATS["int3"]


@pytest.mark.parametrize(
    "text", ["w[2,3,8]g16:0120a16", "w[2,3,8]z:0120a16", "w[3,4]:4/2x01a16", "w[1,2]g16:0100a16"]
)
def test_every_channel_is_that_of_its_format(text: str) -> None:
    """Rounded, as codes and counted in bits, each as the whole weight in its format has it."""
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(40, 4), Quantizer(ActivationRanges({}))
    mixed = Precision.parse(text).weight
    assert mixed.channels is not None
    own = [mixed.by_channel[column] for column in mixed.channels.columns]

    found = quantizer.weight("fc", layer, mixed)

    for row, tensor_format in enumerate(own):
        assert torch.equal(found[row], quantizer.weight("fc", layer, tensor_format)[row])
    assert torch.equal(quantizer.codes("fc", layer, mixed).numbers(), found)
    expected = sum(x.stored_bits(40, 1) for x in own) + mixed.channels.code_bits
    assert mixed.stored_bits(160, 4) == expected
    with pytest.raises(PrecisionError, match="the weight has 5"):
        mixed.stored_bits(200, 5)


@pytest.mark.parametrize(("bits", "why"), [("2,4", "reach from"), ("1,4", "are not all one of")])
def test_kept_codes_of_channels(bits: str, why: str) -> None:
    """Put together from those of whole weights, they are the simulation's, and checked."""
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(24, 3), Quantizer(ActivationRanges({}))
    mixed = Precision.parse(f"w[{bits}]:011a16").weight
    rows = layer.weight.detach()
    parts = [quantizer.codes("fc", layer, own).stored(rows) for own in mixed.by_channel]

    kept = of_channels(parts, mixed)

    by_kept = Quantizer(ActivationRanges({}), stored={("fc", mixed): kept})
    assert torch.equal(by_kept.weight("fc", layer, mixed), quantizer.weight("fc", layer, mixed))
    assert kept.why_not(mixed, (3, 24)) == ""
    assert why in kept.why_not(Precision.parse(f"w[{bits}]:101a16").weight, (3, 24))
    assert "channels, not 4" in kept.why_not(Precision.parse("w[2,4]:0110a16").weight, (3, 24))
    assert np.array_equal(kept.part(np.array([0])).by_itself(mixed.by_channel[0]).codes,
                          parts[0].codes[:1])  # fmt: skip
    assert np.array_equal(kept.codes[1:], parts[1].codes[1:])


@pytest.mark.parametrize("text", OF_INPUTS[:-1])
def test_every_number_is_that_of_its_format(text: str) -> None:
    """In groups, as the whole weight in that format has it, to the bit; else at a scale near it."""
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(40, 4), Quantizer(ActivationRanges({}))
    mixed = Precision.parse(text).weight
    assert mixed.channels is not None
    cells = np.broadcast_to(mixed.channels.cells, (4, 40))

    found = quantizer.weight("fc", layer, mixed)

    for column, own in enumerate(mixed.by_channel):
        here, whole = torch.from_numpy(cells == column), quantizer.weight("fc", layer, own)
        if mixed.group_size:
            assert torch.equal(found[here], whole[here])
        else:
            error, of_whole = ((x - layer.weight)[here].square().mean() for x in (found, whole))
            assert error < 1.05 * of_whole
    codes = quantizer.codes("fc", layer, mixed)
    assert torch.equal(codes.numbers(), found)
    kept = codes.stored(layer.weight.detach())
    assert kept.why_not(mixed, (4, 40)) == ""
    assert "channels" in kept.why_not(Precision.parse(text.replace("40/", "39/")).weight, (4, 40))
    by_kept = Quantizer(ActivationRanges({}), stored={("fc", mixed): kept})
    assert torch.equal(by_kept.weight("fc", layer, mixed), found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Codes of 24 and 16 columns, 4 scales, a factor of the layer and of each channel; names.
        ("w[2,4]:i40/16x010a16", 4 * (24 * 2 + 16 * 4) + 4 * 32 + 32 + 4 * 4 + 3),
        ("w[2,4]g8:i40/16x010a16", 4 * (24 * 2 + 16 * 4) + 4 * 5 * 16 + 3),
        ("w[1,4]:i40/16x010a16", 4 * (24 + 16 * 4) + 4 * 32 + 32 + 4 * 4 + 3),
        ("w[1,4]g20:4/2x01a16", 80 + 80 * 4 + 8 * 16 + 2),
        # Six groups of 2 bits, four of 4 and two of 8; the last of each row are half as long.
        (
            "w[2,4,8]zg16:g40/16x010012210100a16",
            2 * (3 * 16 + 3 * 8) + 4 * (4 * 16) + 8 * (16 + 8)
            + 12 * 16 + 6 * 2 + 4 * 4 + 2 * 8 + 12 * 2,
        ),
    ],
)  # fmt: skip
def test_bytes_of_inputs_are_all_counted(text: str, expected: int) -> None:
    """Codes, scales, zero points, and what says which part has which width."""
    assert Precision.parse(text).weight.stored_bits(160, 4) == expected


def test_other_weights_are_refused() -> None:
    """Of which there are other numbers."""
    with pytest.raises(PrecisionError, match="the weight has 200"):
        Precision.parse("w[2,4]:i40/16x010").weight.stored_bits(200, 5 * 2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("w[2,4]:01101a16", "is of 5 output channels"),
        ("w[2,4]:011a16", "is of 3 output channels"),
        ("w[2,4]:i39/16x010a16", "is of 39 inputs"),
        # One row of groups would do for all rows, and five of five channels for four.
        ("w[2,4]g16:g40/16x010a16", "is of 40 inputs in 1 rows"),
        ("w[2,4]g16:g40/16x010010010010010a16", "is of 40 inputs in 5 rows"),
    ],
)
def test_digits_of_another_weight_are_refused(text: str, why: str) -> None:
    """As of a file edited by hand: neither the first of them are taken, nor one row for all."""
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(40, 4), Quantizer(ActivationRanges({}))
    mixed = Precision.parse(text).weight
    for asked in (quantizer.weight, quantizer.codes):
        with pytest.raises(PrecisionError, match=f"layer 'fc'.*{why}.*4 output channels with 40"):
            asked("fc", layer, mixed)
    whole = Precision.parse("w2g16a16" if mixed.group_size else "w2a16").weight
    kept = quantizer.codes("fc", layer, whole).stored(layer.weight.detach())
    assert kept.why_not(mixed, (4, 40))
