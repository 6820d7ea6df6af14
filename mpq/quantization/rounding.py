"""Round to nearest: scales, and numbers put onto the grid of a format and back.

Tensors come as rows ``[O, K]``; every row has its own scale.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.quantization.precision import Granularity, NumberFormat, TensorFormat
from mpq.quantization.ranges import ActivationRange, RangeMethod

PERCENTILE = 99.9
"""Share of the numbers, in percent, that the ``percentile`` range covers."""
NUM_SHRINKS = 40
"""Ranges that ``mse`` tries: from the full one down to a fifth of it, in equal steps."""

_DTYPES = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_TINY = 2.0**-24  # the smallest fp16 number: group scales are kept in fp16


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """Where the numbers of each row may lie.

    Args:
        number: The number format.
        scale: ``[O]``, positive.
        zero_point: ``[O]`` int32; 0 for symmetric and floating-point formats.
        symmetric: Whether integers are signed around 0.
    """

    number: NumberFormat
    scale: Tensor
    zero_point: Tensor
    symmetric: bool

    def round(self, rows: Tensor) -> Tensor:
        """Nearest point of the grid for ``[O, K]``, in the same dtype."""
        if self.number.is_float:
            scaled = rows.float() / self.scale[:, None]
            return (_round_float(scaled, self.number) * self.scale[:, None]).to(rows.dtype)
        # The arithmetic of torch's fake-quantize kernels, bit for bit; on a CPU those take 20 times
        # as long (benchmarks/rounding.py), because they also keep a mask for the gradient.
        numbers = self.codes(rows).sub_(self.zero_point[:, None]).mul_(self.scale[:, None])
        return numbers.to(rows.dtype)

    def codes(self, rows: Tensor) -> Tensor:
        """The integers, as float32, that stand for ``[O, K]`` in an integer format."""
        low, high = integer_range(self.number, self.symmetric)
        codes = (rows.float() * self.scale.reciprocal()[:, None]).round_()
        return codes.add_(self.zero_point[:, None]).clamp_(low, high)


def integer_range(number: NumberFormat, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code: signed if symmetric, from 0 if affine."""
    levels = 2**number.bits
    return (-(levels // 2), levels // 2 - 1) if symmetric else (0, levels - 1)


def make_grid(number: NumberFormat, symmetric: bool, low: Tensor, high: Tensor) -> Grid:
    """The grid that just covers a range.

    Args:
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        low: ``[O]`` smallest number of each row.
        high: ``[O]`` largest number of each row.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    zero = torch.zeros_like(low, dtype=torch.int32)
    if number.is_float:
        scale = torch.maximum(-low, high) / number.max_value
        return Grid(number, _positive(scale), zero, symmetric)
    code_low, code_high = integer_range(number, symmetric)
    if symmetric:
        scale = torch.maximum(low / code_low, high / code_high)
        return Grid(number, _positive(scale), zero, symmetric)
    scale = _positive((high - low) / code_high)
    point = (-low / scale).round().clamp(code_low, code_high).to(torch.int32)
    return Grid(number, scale, point, symmetric)


def _positive(scale: Tensor) -> Tensor:
    """A row of zeros needs some scale; any will do."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).clamp_min(
        torch.finfo(torch.float32).tiny
    )


def _round_float(scaled: Tensor, number: NumberFormat) -> Tensor:
    """Nearest number of a floating-point format, saturating."""
    clipped = scaled.clamp(-number.max_value, number.max_value)
    dtype = _DTYPES.get(number.name)
    return _round_fp4_e2m1(clipped) if dtype is None else clipped.to(dtype).float()


def _round_fp4_e2m1(x: Tensor) -> Tensor:
    """Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even."""
    exponent = torch.frexp(x.abs().clamp_min(1.0))[1] - 1  # 0, 1 or 2; subnormals share 0
    step = torch.ldexp(torch.full_like(x, 0.5), exponent)
    return (x / step).round() * step


def row_range(
    rows: Tensor, number: NumberFormat, symmetric: bool, method: RangeMethod
) -> tuple[Tensor, Tensor]:
    """Range of each row for a format, by the chosen method.

    Args:
        rows: ``[O, K]``.
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        method: ``minmax``, ``percentile`` (``PERCENTILE`` of each row between the ends) or
            ``mse``: the least squared error among ``NUM_SHRINKS`` shrunken ranges.

    Returns:
        ``[O]`` low and ``[O]`` high.
    """
    rows = rows.float()
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    if method == "minmax":
        return low, high
    if method == "percentile":
        # torch.quantile refuses more than 2**24 numbers; order statistics do as well.
        tail = round((100 - PERCENTILE) / 200 * (rows.shape[1] - 1)) + 1
        return rows.kthvalue(tail).values, rows.kthvalue(rows.shape[1] + 1 - tail).values
    return _least_squares_range(rows, number, symmetric, low, high)


def _least_squares_range(
    rows: Tensor, number: NumberFormat, symmetric: bool, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    best = torch.full_like(low, torch.inf)
    shrink = torch.ones_like(low)
    for factor in torch.linspace(1.0, 0.2, NUM_SHRINKS).tolist():
        grid = make_grid(number, symmetric, low * factor, high * factor)
        error = (grid.round(rows) - rows).square().sum(dim=1)  # [O]
        better = error < best
        best = torch.where(better, error, best)
        shrink = torch.where(better, factor, shrink)
    return low * shrink, high * shrink


def weight_grid(rows: Tensor, tensor_format: TensorFormat, method: RangeMethod) -> Grid:
    """The grid that a weight ``[O, K]`` is put on by a format that needs a scale.

    Scales of groups are rounded to fp16, as they are stored.
    """
    shared = sharing_scale(rows, tensor_format)
    low, high = row_range(shared, tensor_format.number, tensor_format.symmetric, method)
    grid = make_grid(tensor_format.number, tensor_format.symmetric, low, high)
    if tensor_format.granularity is not Granularity.GROUP:
        return grid
    scale = grid.scale.clamp(_TINY, 65504.0).half().float()
    return Grid(grid.number, scale, grid.zero_point, grid.symmetric)


def quantize_rows(rows: Tensor, tensor_format: TensorFormat, grid: Grid | None) -> Tensor:
    """A weight ``[O, K]`` as it is after storing it in a format.

    Args:
        rows: The weight.
        tensor_format: The format.
        grid: Its ``weight_grid``; unused by formats without a scale.
    """
    number = tensor_format.number
    if tensor_format.is_exact:
        return rows
    if not number.needs_scale:
        return _round_float(rows.float(), number).to(rows.dtype)
    assert grid is not None
    rounded = grid.round(sharing_scale(rows, tensor_format))
    if tensor_format.granularity is Granularity.GROUP:
        return rounded.reshape(len(rows), -1)[:, : rows.shape[1]]
    return rounded.reshape(rows.shape)


def sharing_scale(rows: Tensor, tensor_format: TensorFormat) -> Tensor:
    """The weight with one row per scale; the last group of a channel is filled up with zeros."""
    if tensor_format.granularity is Granularity.TENSOR:
        return rows.reshape(1, -1)
    if tensor_format.group_size is None:
        return rows
    size = tensor_format.group_size
    return F.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)


def quantize_activation(
    x: Tensor, tensor_format: TensorFormat, calibrated: ActivationRange | None, token_axes: int
) -> Tensor:
    """A layer's input as it is after storing it in a format.

    Args:
        x: Any shape, the batch first.
        tensor_format: Static formats need a range.
        calibrated: The range; unused by dynamic and 16-bit formats.
        token_axes: How many trailing axes make up one token: 1 for a Linear, all but the batch
            for a convolution (then a token is an example).
    """
    number = tensor_format.number
    if tensor_format.is_exact:
        return x
    if not number.needs_scale:
        return _round_float(x.float(), number).to(x.dtype)
    if tensor_format.granularity is Granularity.TOKEN:
        rows = x.reshape(-1, x.shape[-token_axes:].numel())
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        return make_grid(number, tensor_format.symmetric, low, high).round(rows).reshape(x.shape)
    assert calibrated is not None
    return static_grid(tensor_format, calibrated, x.device).round(x.reshape(1, -1)).view_as(x)


@lru_cache(maxsize=65536)  # an entry is two numbers; making one takes as long as rounding 100,000
def static_grid(
    tensor_format: TensorFormat, calibrated: ActivationRange, device: torch.device
) -> Grid:
    """The grid of a static activation format, one row, with a calibrated range."""
    with torch.inference_mode(False):
        low = torch.tensor([calibrated.low], device=device)
        high = torch.tensor([calibrated.high], device=device)
        return make_grid(tensor_format.number, tensor_format.symmetric, low, high)
