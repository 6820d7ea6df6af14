"""Layers to round, and what rounding them costs, in double precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.rounding import WeightRounding
from mpq.rounding.objective import Objective
from mpq.rounding.stack import Stack

Array = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """What is rounded.

    Args:
        rows: ``[O, K]``.
        moment: ``[G, K, K]``.
    """

    rows: Tensor
    moment: Tensor


def layer(num_rows: int, num_inputs: int, num_groups: int = 1, seed: int = 0) -> Layer:
    """Normal weights whose inputs are mixtures of fewer causes and some noise."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_inputs, generator=random)
    causes = torch.randn(num_groups, num_inputs, max(num_inputs // 2, 1), generator=random)
    moment = causes @ causes.mT + 0.1 * torch.eye(num_inputs)
    return Layer(rows, (moment + moment.mT) / 2)


@st.composite
def layers(draw: st.DrawFn, max_rows: int = 4, max_inputs: int = 12, min_inputs: int = 1) -> Layer:
    """Layers of any small shape, also with inputs that are always 0 and rows of zeros."""
    num_rows, num_inputs = (
        draw(st.integers(1, max_rows)),
        draw(st.integers(min_inputs, max_inputs)),
    )
    found = layer(num_rows, num_inputs, seed=draw(st.integers(0, 2**16)))
    dead = draw(st.sets(st.integers(0, num_inputs - 1), max_size=num_inputs // 2))
    found.moment[:, list(dead)] = 0
    found.moment[:, :, list(dead)] = 0
    if draw(st.booleans()):
        found.rows[draw(st.integers(0, num_rows - 1))] = 0
    found.rows.mul_(10.0 ** draw(st.integers(-4, 4)))
    found.moment.mul_(10.0 ** draw(st.integers(-6, 6)))
    return found


def format_of(spelling: str) -> TensorFormat:
    """Of a weight."""
    return Precision.parse(spelling if spelling[0] != "w" else f"{spelling}a32").weight


def rounded(
    rounding: WeightRounding,
    of: Layer,
    spellings: Sequence[str],
    numerics: Numerics = OWN,
    weight_range: str = "mse",
) -> list[Codes]:
    """Codes at some formats, scales starting from their ranges."""
    formats = [format_of(spelling) for spelling in spellings]
    method = RANGE_METHODS.build(weight_range)
    grids = [weight_grid(of.rows, f, method, numerics) for f in formats]
    return rounding.codes(of.rows, of.moment, formats, grids, numerics)


def nearest_codes(of: Layer, spelling: str) -> Codes:
    """As ``rounded`` by itself, without any rounding's help."""
    tensor_format = format_of(spelling)
    grid = weight_grid(of.rows, tensor_format, RANGE_METHODS.build("mse"))
    return Codes.of(of.rows, tensor_format, grid)


def stack_of(of: Layer, spelling: str) -> Stack:
    """All rows at one format, at the scales of rounding to nearest."""
    start = nearest_codes(of, spelling)
    stored_as = OWN.group_scale if start.tensor_format.group_size else OWN.scale
    return Stack.of(of.rows, [start.tensor_format], [(start.scale, start.zero_point)], stored_as)


def damped(moment: Tensor, damping: float = 0.01) -> Array:
    """``[K, K]``: a share of the mean of the diagonal is added to it."""
    form: Array = moment.double().numpy()
    raised: Array = form + damping * np.diag(form).mean() * np.eye(len(form))
    return raised


def objective_of(of: Layer, damping: float = 0.01) -> Objective:
    """Of the first group."""
    return Objective.of(of.moment[0], damping)


def errors_of(of: Layer, numbers: Tensor, damping: float = 0.01) -> Array:
    """``[O]`` quadratic error of each row, in double precision and the moment's own units."""
    per_group = len(of.rows) // len(of.moment)
    forms = [damped(matrix, damping) for matrix in of.moment]
    error = numbers.double().numpy() - of.rows.double().numpy()
    return np.array([e @ forms[row // per_group] @ e for row, e in enumerate(error)])
