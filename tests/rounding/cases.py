"""Layers to round, and what is reckoned about them in double precision, apart from the product."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.rounding import WeightRounding

Array = np.ndarray[Any, np.dtype[np.float64]]


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


def points(codes: Codes, row: int) -> list[Array]:
    """For every input of a row, all numbers that an integer format can make of it."""
    told = codes.tensor_format
    half = 2 ** (told.number.bits - 1)
    all_codes = np.arange(-half, half) if told.symmetric else np.arange(2 * half)
    scale, point = codes.scale.double().numpy()[row], codes.zero_point.numpy()[row]
    group = told.group_size or codes.num_inputs
    return [(all_codes - point[k // group]) * scale[k // group] for k in range(codes.num_inputs)]
