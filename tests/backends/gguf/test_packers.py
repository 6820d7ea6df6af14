"""Blocks of GGUF against the ``gguf`` package's own reader of them."""

import numpy as np
import pytest
import torch

from mpq.backends.gguf.packers import packed_blocks
from mpq.backends.gguf.types import BLOCK_TYPES, TWO_BITS, block_type, layout_refusal
from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid

HELD = [f"w{bits}{more}" for bits in range(2, 9) for more in ("", "t")]
GROUPS = ["w4g32", "w5g32", "w7g32", "w8g64", "w4g128", "w2g256", "w3g256", "w6g256", "w4g512"]
MICRO = ["wmxfp4", "wnvfp4"]


def codes_of(precision: str, rows: torch.Tensor) -> Codes:
    """A weight's codes with scales that fp16 holds."""
    weight = Precision.parse(precision).weight
    numerics = Numerics(scale="fp16", tensor_scale="none")
    grid = weight_grid(rows, weight, RANGE_METHODS.build("minmax"), numerics)
    return Codes.of(rows, weight, grid)


@pytest.mark.parametrize("magnitude", [1e-9, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("two_bits", TWO_BITS)
@pytest.mark.parametrize("num_inputs", [512, 96])
@pytest.mark.parametrize("precision", [*HELD, *GROUPS, *MICRO])
def test_the_reader_decodes_the_numbers_of_the_simulation(
    precision: str, num_inputs: int, two_bits: str, magnitude: float
) -> None:
    """Bit for bit, in every type, down to scales that are fp16's smallest number."""
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    weight = Precision.parse(precision).weight
    if layout_refusal(weight, num_inputs):
        pytest.skip("no whole groups")
    torch.manual_seed(0)
    codes = codes_of(precision, torch.randn(6, num_inputs) * magnitude)
    chosen = block_type(weight, num_inputs, two_bits)

    stored = packed_blocks(codes, chosen)
    decoded = quants.dequantize(stored, constants.GGMLQuantizationType[chosen.name])

    assert stored.shape == (6, num_inputs // chosen.block * chosen.block_bytes)
    assert np.array_equal(decoded, codes.numbers().numpy())


@pytest.mark.parametrize("name", list(BLOCK_TYPES))
def test_blocks_have_the_sizes_of_ggml(name: str) -> None:
    """What a search counts as bytes is what ggml takes."""
    constants = pytest.importorskip("gguf.constants")

    size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[name]]

    assert size == (BLOCK_TYPES[name].block, BLOCK_TYPES[name].block_bytes)


@pytest.mark.parametrize(
    ("precision", "num_inputs", "sentence"),
    [
        ("w4", 172, "rows of whole blocks of 32, and a row has 172"),
        ("w4g16", 64, "groups of 16 are no whole blocks of 32"),
        ("w4g64", 96, "96 inputs are no whole groups of 64"),
        ("w3g128", 256, "w4g128 takes the room"),
        ("w6g32", 256, "w8g32 takes the room"),
        ("wmxfp4", 48, "rows of whole blocks of 32, and a row has 48"),
        ("wnvfp4", 96, "nvfp4 has blocks of 64, a row 96"),
    ],
)
def test_layouts_without_a_type_are_refused(precision: str, num_inputs: int, sentence: str) -> None:
    """With the reason, and with what to take instead where there is something."""
    assert sentence in layout_refusal(Precision.parse(precision).weight, num_inputs)
