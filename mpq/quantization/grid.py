"""Grids: where the numbers of a row may lie, and putting them there.

Tensors come as rows ``[O, K]``; every row has its own scale.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import InputRounding
from mpq.quantization.second_scales import SecondScales


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """Where the numbers of each row may lie.

    Args:
        number: Number format of the grid's points; one that needs a scale.
        scale: ``[O]`` float32, positive: how far the numbers of two successive codes are apart.
        zero_point: ``[O]`` int32, or float32 where it may be a fraction; 0 for symmetric and
            floating-point formats.
        symmetric: Whether integers are signed around 0.
        rounding: How numbers become codes, as in ``Numerics.input_rounding``.
        second: What the scales are stored relative to, in their shape; unset: nothing.
        levels: ``[O, N]`` float32, ascending: the numbers of each row where it has a codebook; then
            scales are 1.
    """

    number: NumberFormat
    scale: Tensor
    zero_point: Tensor
    symmetric: bool
    rounding: InputRounding = "reciprocal"
    second: SecondScales | None = None
    levels: Tensor | None = None

    @property
    def unsigned_zero_point(self) -> Tensor:
        """``[O]`` int32: the code of 0 of an integer format, where the smallest code is 0."""
        return self.zero_point - integer_range(self.number, self.symmetric)[0]

    @property
    def signed_zero_point(self) -> Tensor:
        """``[O]`` int32: the same where codes are signed, also affine ones."""
        return self.unsigned_zero_point - (1 << self.number.bits - 1)

    def part(self, rows: slice | Tensor, num_rows: int) -> "Grid":
        """The grid of some of a weight's ``num_rows`` channels, each of which has as many scales.

        One scale of the whole weight is that of every part.
        """
        if len(self.scale) == 1:
            return self

        def some(values: Tensor) -> Tensor:
            return values.view(num_rows, -1)[rows].flatten()

        second = None if self.second is None else self.second.mapped(some)
        levels = None if self.levels is None else self.levels[rows]
        scale, zero_point = some(self.scale), some(self.zero_point)
        return replace(self, scale=scale, zero_point=zero_point, second=second, levels=levels)

    def round(self, rows: Tensor, work: Tensor | None = None) -> Tensor:
        """Nearest point of the grid for ``[O, K]``, in the same dtype.

        Args:
            rows: ``[O, K]``, not changed.
            work: Memory of as many float32 that may be used, also for what is returned: new memory
                takes longer than the arithmetic.
        """
        if self.number.is_float:
            return self.codes(rows, work).mul_(self.scale[:, None]).to(rows.dtype)
        # The arithmetic of torch's fake-quantize kernels, bit for bit; on a CPU those take 20 times
        # as long (benchmarks/rounding.py), because they also keep a mask for the gradient.
        numbers = self.codes(rows, work).sub_(self.zero_point[:, None]).mul_(self.scale[:, None])
        return numbers.to(rows.dtype)

    def codes(self, rows: Tensor, work: Tensor | None = None) -> Tensor:
        """What stands for ``[O, K]``, as float32: integers, or numbers in units of their scale."""
        if self.levels is not None:
            return nearest_levels(rows.float(), self.levels)
        if self.number.is_float:
            # In float32: in half precision the quotient would be rounded twice.
            return round_float(torch.div(rows.float(), self.scale[:, None], out=work), self.number)
        low, high = integer_range(self.number, self.symmetric)
        if self.zero_point.is_floating_point():
            units = (rows.float() * self.scale.reciprocal()[:, None]).add_(self.zero_point[:, None])
            return units.round_().clamp_(low, high)
        if self.rounding == "quotient":
            # Codes are signed there, also affine ones, whose zero point is added before rounding.
            middle = 0 if self.symmetric else 2 ** (self.number.bits - 1)
            shifted = (rows.float() / self.scale[:, None]).add_(self.zero_point[:, None] - middle)
            return shifted.clamp_(low - middle, high - middle).round_().add_(middle)
        # As torch's kernels do it, which matters at ties: the reciprocal is multiplied with, and
        # the zero point added after rounding. In place, as the product is a copy of a whole weight.
        scale = self.scale[:, None]
        divides = self.rounding == "rounded-quotient"
        if divides:
            codes = torch.div(rows.float(), scale, out=work)
        else:
            codes = torch.mul(rows.float(), scale.reciprocal(), out=work)
        return codes.round_().add_(self.zero_point[:, None]).clamp_(low, high)


def nearest_levels(rows: Tensor, levels: Tensor) -> Tensor:
    """Of each row's own levels ``[..., R, N]`` the nearest ones to ``[..., R, K]``."""
    return levels.gather(-1, places_of_levels(rows, levels))


def places_of_levels(rows: Tensor, levels: Tensor) -> Tensor:
    """Which of a row's levels is the nearest, int64; of two equally near ones the lower."""
    middle = (levels[..., 1:] + levels[..., :-1]) / 2
    return torch.searchsorted(middle.contiguous(), rows.contiguous())


def integer_range(number: NumberFormat, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code: signed if symmetric, from 0 if affine."""
    levels = 2**number.bits
    # All codes, though the signed ones reach one further below 0: at 2 bits it is one of four.
    lowest = -(levels // 2) if symmetric else 0
    return lowest, lowest + levels - 1


def make_grid(number: NumberFormat, symmetric: bool, low: Tensor, high: Tensor) -> Grid:
    """The grid that just covers a range.

    Args:
        number: A format that needs a scale.
        symmetric: Whether zero is the middle.
        low: ``[O]`` smallest number of each row.
        high: ``[O]`` largest number of each row.
    """
    # Every range has 0 in it: padding, the outputs of a ReLU and unused places have to stay 0.
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    # One number in memory: with six formats in groups of 128, a tenth of a network in bf16.
    zero = torch.zeros((), dtype=torch.int32, device=low.device).expand(low.shape)
    if number.is_float:
        lowest = number.table[0] if number.table else -number.max_value
        # Levels that begin at 0 have none for what is below: it saturates there.
        below = low / lowest if lowest else torch.zeros_like(low)
        scale = _positive(torch.maximum(below, high / number.max_value), number.has_zero)
        return Grid(number, _block_scale(scale, number), zero, symmetric)
    code_low, code_high = integer_range(number, symmetric)
    if symmetric:
        # There is one code less above 0 than below; the larger step covers both sides.
        scale = torch.maximum(low / code_low, high / code_high)
        return Grid(number, _positive(scale), zero, symmetric)
    scale = _positive((high - low) / code_high)
    # A whole number, so that 0 is on the grid; the ends give way by up to half a step.
    point = (-low / scale).round().clamp(code_low, code_high).to(torch.int32)
    return Grid(number, scale, point, symmetric)


def make_fraction_grid(number: NumberFormat, low: Tensor, high: Tensor) -> Grid:
    r"""The grid of an integer format that goes from one end of a range to the other.

    .. math:: w \approx s (q - z), \quad z = -\mathrm{low} / s

    with a zero point ``z`` that is a fraction, so that 0 need neither be on the grid nor in the
    range. Reference: Badri and Shaji (2023), HQQ, whose ``z`` is a float as well.

    Args:
        number: An integer format.
        low: ``[O]`` smallest number of each row.
        high: ``[O]`` largest number of each row.
    """
    low, high = low.float(), high.float()
    scale = _positive((high - low) / integer_range(number, symmetric=False)[1])
    return Grid(number, scale, -low / scale, symmetric=False)


def _positive(scale: Tensor, has_zero: bool = True) -> Tensor:
    """A row of zeros needs some scale: any will do, or the smallest where no code stands for 0."""
    if has_zero:
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # Of a subnormal number the reciprocal may overflow, and 0 times infinity is nan.
    return scale.clamp_min(torch.finfo(torch.float32).tiny)


def _block_scale(scale: Tensor, number: NumberFormat) -> Tensor:
    """Scales of a microscaling format as they are after storing them, float32; others as they are.

    A power of two is the next larger one, at which the whole range fits, as MLX takes it too; fp8
    is rounded to nearest.
    """
    if number.block_scale == "e8m0":
        mantissa, exponent = torch.frexp(scale)  # 0.5 <= m < 1
        exponent = exponent - (mantissa == 0.5).int()
        # Of its exponents the smallest is left out: that number is subnormal in float32.
        biased = exponent.clamp(-126, 127).to(torch.int32) + 127
        return (biased << 23).view(torch.float32)  # its bits, as no power function is trusted
    if number.block_scale == "e4m3":
        fp8 = scale.clamp(2.0**-9, 448.0)  # its smallest and its largest number
        return fp8.to(torch.float8_e4m3fn).float()
    return scale


def round_float(scaled: Tensor, number: NumberFormat) -> Tensor:
    """Nearest number of a format that is no integer, saturating; float32.

    Args:
        scaled: Numbers in units of their scale, float32, any shape.
        number: A format with an exponent or a table, at whose ends they saturate.
    """
    if number.table:
        return level_table(number.table, scaled.device)[0][places(scaled, number)]
    # First of all: torch's casts to fp16 and float8_e5m2 turn larger numbers into infinity.
    clipped = scaled.clamp(-number.max_value, number.max_value)
    if number.torch_dtype is None:
        return _round_mantissa(clipped, number)
    return clipped.to(getattr(torch, number.torch_dtype)).float()


def places(scaled: Tensor, number: NumberFormat) -> Tensor:
    """Which of a format's ``levels`` is the nearest, int32; of two equally near ones the even.

    Args:
        scaled: As in ``round_float``.
        number: One that has levels.
    """
    _, boundaries = level_table(number.levels, scaled.device)
    return torch.bucketize(scaled.contiguous(), boundaries, out_int32=True)


@lru_cache(maxsize=256)
def level_table(levels: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels ``[N]`` and what parts them ``[N - 1]``: the largest that goes to the lower; float32.

    Args:
        levels: Ascending.
        device: Where the tensors are.
    """
    # A tensor made in inference mode is refused by autograd, and these are kept for every caller.
    with torch.inference_mode(False):
        table = torch.tensor(levels, dtype=torch.float32)
        middle = table.double().unfold(0, 2, 1).mean(dim=1)
        boundaries = middle.float()
        # Halves go to the even place: from an odd one up. The middle of two float32 may be none.
        is_odd = torch.arange(len(middle)) % 2 == 1
        goes_up = (boundaries > middle) | ((boundaries == middle) & is_odd)
        below = torch.nextafter(boundaries, torch.full_like(boundaries, -torch.inf))
        return table.to(device), torch.where(goes_up, below, boundaries).to(device)


def _round_mantissa(x: Tensor, number: NumberFormat) -> Tensor:
    """To the mantissa's bits, ties to even; below the smallest normal number the step stays."""
    smallest_normal = 2.0**number.min_exponent
    exponent = torch.frexp(x.abs().clamp_min(smallest_normal))[1] - 1  # frexp has 0.5 <= m < 1
    step = torch.ldexp(torch.full_like(x, 2.0**-number.mantissa_bits), exponent)
    # Steps are powers of two, so that only the rounding rounds.
    return (x / step).round() * step
