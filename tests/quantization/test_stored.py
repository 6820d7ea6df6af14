"""Codes that are kept: the same numbers again, of this weight, in one file."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import FileFormatError, MismatchError
from mpq.quantization.codes import Codes
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.stored import StoredWeight, StoredWeights, signature_of

SPELLINGS = [
    "w2",
    "w3z",
    "w4",
    "w5z",
    "w6",
    "w8",
    "w8z",
    "w9",
    "w15z",
    "w4t",
    "w4tz",
    "w4g5",
    "w3zg8",
    "fp4",
    "wfp8a32",
    "fp8_e5m2",
    "e2m0",
    "we3m2g8",
    "e5m0",
    "e6m1",
    "binary",
    "wbinaryg8",
    "ternary",
    "wternaryg8",
    "mxfp4",
    "mxfp8",
    "mxfp6_e2m3",
    "mxint8",
    "nf4",
    "wnf3g8",
    "nvfp4",
    "w4g5sfp8",
    "w4zg5sbf16",
    "wnf4g2sdq",
    "w4sdyadic8",
    "w4zf",
    "w3zfg5",
    "w4zfg5sdq",
]
ROWS = torch.randn(6, 19, generator=torch.Generator().manual_seed(0))


def codes_of(spelling: str, rows: torch.Tensor = ROWS) -> Codes:
    """Of the weight, rounded to nearest."""
    tensor_format = Precision.parse(spelling).weight
    grid = weight_grid(rows, tensor_format, RANGE_METHODS.build("mse"))
    return Codes.of(rows, tensor_format, grid)


def stored_by(spelling: str) -> StoredWeight:
    """What is kept of it."""
    return codes_of(spelling).stored(ROWS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_kept_codes_stand_for_the_same_numbers(spelling: str) -> None:
    found = codes_of(spelling)
    again = Codes.of_stored(found.stored(ROWS), found.tensor_format)
    assert torch.equal(again.numbers(), found.numbers())
    assert torch.equal(again.codes, found.codes)
    assert again.num_inputs == 19


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_gives_the_same_weights(spelling: str) -> None:
    weights = StoredWeights("gptq", {"a.b": stored_by(spelling), "c": stored_by("w8z")})
    again = StoredWeights.from_content(weights.content, "gptq", weights.sha256)
    assert again == weights
    assert hash(again) == hash(weights)
    assert sorted(again.by_layer) == ["a.b", "c"]
    for part, array in weights.by_layer["a.b"].parts().items():
        np.testing.assert_array_equal(again.by_layer["a.b"].parts()[part], array)


def test_codes_take_a_byte_up_to_eight_bits() -> None:
    kinds = {s: stored_by(s).codes.dtype.name for s in ("w2", "w8", "w3z", "w8z", "fp4", "fp8")}
    kinds |= {s: stored_by(s).codes.dtype.name for s in ("binary", "ternary")}
    expected = {
        "binary": "uint8",
        "ternary": "uint8",
        "w2": "int8",
        "w8": "int8",
        "w3z": "uint8",
        "w8z": "uint8",
    }
    assert kinds == expected | {"fp4": "float16", "fp8": "float16"}


def test_codes_that_a_half_does_not_hold_take_four_bytes() -> None:
    """Powers of two up to 2^16, and those of six bits of exponent."""
    floats = (n for n in NUMBER_FORMATS.values() if n.needs_scale and n.is_float)
    wide = {n.name for n in floats if not n.is_for_inputs}
    wide = {n for n in wide if stored_by(f"w{n}").codes.dtype.name == "float32"}
    assert wide == {"e5m0", "e5m1", "e6m0", "e6m1"}


def test_weights_of_another_rounding_are_others() -> None:
    assert StoredWeights("gptq", {"a": stored_by("w4")}) != StoredWeights(
        "coordinate-descent", {"a": stored_by("w4")}
    )
    assert StoredWeights("gptq", {"a": stored_by("w4")}) != StoredWeights(
        "gptq", {"a": stored_by("w3")}
    )
    assert StoredWeights("gptq", {}) != "gptq"


def test_another_file_is_refused() -> None:
    weights = StoredWeights("gptq", {"a": stored_by("w4")})
    with pytest.raises(FileFormatError, match="SHA-256 is another"):
        StoredWeights.from_content(b"{}", "gptq", weights.sha256)


def test_a_file_that_is_none_is_refused_even_with_its_own_checksum() -> None:
    from hashlib import sha256

    with pytest.raises(FileFormatError, match="not a safetensors file"):
        StoredWeights.from_content(b"nothing", "gptq", sha256(b"nothing").hexdigest())


def test_a_missing_part_is_named() -> None:
    from hashlib import sha256

    from safetensors.numpy import save

    content = save({"a.codes": np.zeros((1, 2), np.int8)})
    with pytest.raises(FileFormatError, match=r"lack 'a\.scale'"):
        StoredWeights.from_content(content, "gptq", sha256(content).hexdigest())


def test_the_signature_tells_weights_apart() -> None:
    rows = ROWS.numpy()
    kept = stored_by("w4")
    assert kept.is_of([rows])
    assert kept.is_of([ROWS.bfloat16().float().numpy()])  # the same checkpoint in half the bytes
    permuted = rows[:, np.random.default_rng(0).permutation(19)]
    assert not kept.is_of([permuted])
    assert not kept.is_of([rows * 1.05])
    assert not kept.is_of([rows[::-1]])
    assert not kept.is_of([rows[:, :18]])
    one_row = rows.copy()
    one_row[2] = -one_row[2]
    assert not kept.is_of([one_row])


def test_signs_are_balanced_and_do_not_depend_on_the_row() -> None:
    signs = np.array([signature_of(row[None])[0] for row in np.eye(4096)])
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.05
    assert abs((signs[1:] * signs[:-1]).mean()) < 0.05


@pytest.mark.parametrize(
    ("assigned", "why"),
    [
        ("w4", ""),
        ("w5", ""),  # whose codes hold those of 4 bits
        ("w3", "reach from"),
        ("w4z", "not 114 of uint8"),
        ("fp4", "not 114 of float16"),
        ("w4g8", "have scales of"),
        ("fp16", "are of a format with scales"),
        ("fp32", "are of a format with scales"),
    ],
)
def test_codes_of_another_format_are_told(assigned: str, why: str) -> None:
    found = stored_by("w4").why_not(Precision.parse(assigned).weight, (6, 19))
    assert (why in found) if why else found == ""


def test_codes_of_another_shape_are_told() -> None:
    assert "are 114" in stored_by("w4").why_not(Precision.parse("w4").weight, (6, 20))


def quantizer_with(stored: StoredWeight, spelling: str) -> Quantizer:
    """Of one layer, ``fc``."""
    cell = ("fc", Precision.parse(spelling).weight)
    return Quantizer(ActivationRanges({}), stored={cell: stored})


def test_a_quantizer_takes_what_is_kept() -> None:
    layer = nn.Linear(19, 6)
    layer.weight = nn.Parameter(ROWS.clone())
    found = codes_of("w4")
    moved = Codes(found.tensor_format, found.codes.clone(), found.scale, found.zero_point, 19)
    moved.codes[0, 0] = 0.0 if found.codes[0, 0] else 1.0
    quantizer = quantizer_with(moved.stored(ROWS), "w4")
    assert torch.equal(quantizer.weight("fc", layer, found.tensor_format), moved.numbers())
    assert torch.equal(quantizer.codes("fc", layer, found.tensor_format).codes, moved.codes)
    # Another format, and another layer, are rounded to nearest.
    plain = Quantizer(ActivationRanges({}))
    five = Precision.parse("w5").weight
    assert torch.equal(quantizer.weight("fc", layer, five), plain.weight("fc", layer, five))
    assert torch.equal(quantizer.weight("other", layer, found.tensor_format), found.numbers())


def test_codes_of_another_checkpoint_are_refused() -> None:
    layer = nn.Linear(19, 6)
    with pytest.raises(MismatchError, match="layer 'fc': its codes were rounded from another"):
        quantizer_with(stored_by("w4"), "w4").weight("fc", layer, Precision.parse("w4").weight)


def test_half_precision_weights_keep_their_type() -> None:
    layer = nn.Linear(19, 6).bfloat16()
    layer.weight = nn.Parameter(ROWS.bfloat16())
    found = quantizer_with(stored_by("w4"), "w4").weight("fc", layer, Precision.parse("w4").weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, codes_of("w4").numbers().bfloat16())
