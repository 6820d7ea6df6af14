"""Layers to round, and what is reckoned about them in double precision, apart from the product."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.level_tables import NF4
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import WeightRounding
from mpq.rounding.stack import Stack

Array = np.ndarray[Any, np.dtype[np.float64]]
SPELLINGS = [
    "w2", "w3z", "w4", "w8", "w3g4", "w4zg5", "w4t", "fp4", "fp8", "e2m0", "we3m2g5", "binary",
    "wternaryg7", "mxfp4", "mxfp6_e2m3", "mxint8", "wnf4g6", "nvfp4",
    "w4g4sfp8", "w3zg4sbf16", "w4g3sdq", "wnf4g6sdq", "w4sdyadic8", "w5sfp8", "w4zfg5", "w3zf",
    "w4tzfsbf16", "w4zfg3sdq",
]  # fmt: skip
"""Of every layout that scales can have."""
EXACT = Numerics(group_scale="fp32")
"""What is fitted is what is stored."""


def layer(
    num_rows: int, num_inputs: int, num_groups: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A weight ``[O, K]`` and the second moments ``[G, K, K]`` of inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_inputs, generator=generator)
    shape = (num_groups, 4 * num_inputs + 8, num_inputs)
    mixing = torch.randn(num_groups, num_inputs, num_inputs, generator=generator)
    inputs = torch.randn(shape, generator=generator) @ (mixing / num_inputs**0.5)
    inputs = inputs + torch.randn(num_groups, 1, num_inputs, generator=generator)  # a common part
    return rows, inputs.transpose(1, 2) @ inputs / shape[1]


def formats_of(*spellings: str) -> list[TensorFormat]:
    """Weight formats as ``Precision.parse`` reads them."""
    return [Precision.parse(spelling).weight for spelling in spellings]


def grids_of(rows: Tensor, formats: Sequence[TensorFormat], numerics: Numerics = OWN) -> list[Grid]:
    """Where scales start."""
    return [weight_grid(rows, f, RANGE_METHODS.build("mse"), numerics) for f in formats]


def rounded(
    rounding: WeightRounding,
    rows: Tensor,
    moment: Tensor,
    formats: Sequence[TensorFormat],
    numerics: Numerics = OWN,
) -> list[Codes]:
    """The weight in each format."""
    return rounding.codes(rows, moment, formats, grids_of(rows, formats, numerics), numerics)


def damped(moment: Tensor, damping: float = 0.01) -> Array:
    """``[K, K]`` of a second moment, by the definition."""
    form = moment.double().numpy()
    return np.asarray(form + damping * np.trace(form) / len(form) * np.eye(len(form)))


def errors(rows: Tensor, numbers: Tensor, moment: Tensor, damping: float = 0.01) -> Array:
    """``[O]`` quadratic error of every row, whose inputs have moments ``[G, K, K]``."""
    parts = np.split((numbers.double() - rows.double()).numpy(), len(moment))
    return np.concatenate(
        [
            np.einsum("oi,ij,oj->o", part, damped(matrix, damping), part)
            for part, matrix in zip(parts, moment, strict=True)
        ]
    )


def all_codes_of(told: TensorFormat) -> Array:
    """Every code of a format, in order."""
    number = told.number
    if number.name in ("binary", "ternary"):
        return np.array({"binary": [-1.0, 1.0], "ternary": [-1.0, 0.0, 1.0]}[number.name])
    if number.name == "mxint8":
        return np.arange(-128, 128) / 64
    if number.name == "nf4":
        return np.array(NF4, dtype=np.float64)
    if number.torch_dtype:
        every = torch.arange(256).to(torch.uint8).view(getattr(torch, number.torch_dtype)).double()
        return np.unique(every[every.isfinite()].numpy() + 0.0)  # one zero
    if number.is_float:
        magnitudes = {
            2.0 ** max(exponent, number.min_exponent)
            * ((exponent >= number.min_exponent) + mantissa / 2**number.mantissa_bits)
            for exponent in range(number.min_exponent - 1, 16)
            for mantissa in range(2**number.mantissa_bits)
        }
        within = np.array([m for m in magnitudes if m <= number.max_value])
        return np.unique(np.concatenate([within, -within]) + 0.0)
    half = 2 ** (told.number.bits - 1)
    return (np.arange(-half, half) if told.symmetric else np.arange(2 * half)).astype(np.float64)


def points(codes: Codes, row: int) -> list[Array]:
    """For every input of a row, all numbers that its format can make of it, in order."""
    told = codes.tensor_format
    all_codes = all_codes_of(told)
    scale, point = codes.scale.double().numpy()[row], codes.zero_point.numpy()[row]
    group = told.group_size or codes.num_inputs
    return [(all_codes - point[k // group]) * scale[k // group] for k in range(codes.num_inputs)]


def stack_of(rows: Tensor, spelling: str, numerics: Numerics = EXACT) -> tuple[Stack, Codes]:
    """The rows as a stack, and to nearest."""
    (tensor_format,) = formats_of(spelling)
    start = Codes.of(rows, tensor_format, grids_of(rows, [tensor_format], numerics)[0])
    grids = [(start.scale, start.zero_point)]
    return Stack.of(rows, [tensor_format], grids, numerics), start
