"""Round to nearest: weights and activations as they are after storing them in a format.

Tensors come as rows ``[O, K]``; every row has its own scale.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from math import floor, log2
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.quantization.grid import Grid, make_fraction_grid, make_grid, round_float
from mpq.quantization.input_sample import has_positions
from mpq.quantization.kmeans import kmeans_levels
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.range_method import ActivationRange, RangeMethod
from mpq.quantization.range_search import NUMBERS_AT_ONCE
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.second_scales import SecondScales, stored_scale
from mpq.quantization.tensor_format import Granularity, TensorFormat
from mpq.quantization.token_blocks import from_blocks, to_blocks, widths_of

LARGEST_POINT: Final = 2.0**15
"""Of zero points of groups, by scales before storing: half of what fp16 holds."""
LARGEST_BLOCK_SCALE: Final = 448.0
"""The largest number of fp8, in which NVFP4's scales are stored."""


def weight_grid(
    rows: Tensor, tensor_format: TensorFormat, method: RangeMethod, numerics: Numerics = OWN
) -> Grid:
    """The grid that a weight ``[O, K]`` is put on by a format that needs a scale.

    Scales are rounded to what they are stored in (``scale_type_of``). A codebook has no range: its
    levels are those of the least squared error, whatever the method.
    """
    if tensor_format.number.has_codebook:
        return codebook_grid(rows, tensor_format.number)
    shared = sharing_scale(rows, tensor_format)
    if not tensor_format.number.has_codes:
        return _with_stored_scale(_zero_grid(shared, tensor_format), tensor_format, numerics)
    if tensor_format.number.is_microscaling:
        return _block_grid(shared, tensor_format.number, method, numerics)
    if tensor_format.float_zero:
        return _fraction_grid(shared, tensor_format, method, numerics)
    number, symmetric = tensor_format.number, tensor_format.symmetric
    low, high = _in_tiles(shared, lambda some: method.ends(some, number, symmetric))
    grid = make_grid(tensor_format.number, tensor_format.symmetric, low, high)
    return _with_stored_scale(grid, tensor_format, numerics)


def _zero_grid(shared: Tensor, tensor_format: TensorFormat) -> Grid:
    """Where 0 is the one number: any scale will do, and 1 divides by nothing."""
    scale = torch.ones(len(shared), device=shared.device, dtype=torch.float32)
    zero = torch.zeros(len(shared), device=shared.device, dtype=torch.int32)
    return Grid(tensor_format.number, scale, zero, tensor_format.symmetric)


def _in_tiles(
    rows: Tensor, ends: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Ends ``[O]`` of rows ``[O, K]``, some rows at a time: what is made of them stays small."""
    if not len(rows):
        return ends(rows)
    low, high = zip(*(ends(rows[some]) for some in row_tiles(rows)), strict=True)
    return torch.cat(low), torch.cat(high)


def _fraction_grid(
    shared: Tensor, tensor_format: TensorFormat, method: RangeMethod, numerics: Numerics
) -> Grid:
    number = tensor_format.number
    low, high = _in_tiles(shared, lambda some: method.fraction_ends(some, number))
    grid = make_fraction_grid(number, low, high)
    if tensor_format.granularity is Granularity.GROUP:
        # Numbers that are nearly alike and far from 0 have zero points beyond fp16 at their scale.
        grid = replace(grid, scale=torch.maximum(grid.scale, low.abs() / LARGEST_POINT))
    grid = _with_stored_scale(grid, tensor_format, numerics)
    # By the stored scale, which both ends are a little nearer or farther with.
    return replace(grid, zero_point=stored_zero_point(-low / grid.scale, tensor_format))


def stored_zero_point(point: Tensor, tensor_format: TensorFormat) -> Tensor:
    """Zero points that are fractions, as they are after storing them; any shape, float32."""
    if tensor_format.granularity is not Granularity.GROUP:
        return point
    largest = SCALE_FORMATS["fp16"].largest
    return point.clamp(-largest, largest).half().float()


def _with_stored_scale(grid: Grid, tensor_format: TensorFormat, numerics: Numerics) -> Grid:
    scale_type = scale_type_of(tensor_format, numerics)
    told = SCALE_FORMATS[scale_type]
    second = SecondScales.of(grid.scale, told) if told.second_scale else None
    return replace(grid, scale=stored_scale(grid.scale, scale_type, second), second=second)


def codebook_grid(rows: Tensor, number: NumberFormat, weights: Tensor | None = None) -> Grid:
    """The levels of every row, by weighted k-means, as they are after storing them in fp16.

    Args:
        rows: ``[O, K]``.
        number: One with a codebook.
        weights: ``[O, K]`` what a squared error counts, above 0; ``None``: the same everywhere.
    """
    numbers = rows.double().cpu().numpy()
    counted = np.ones_like(numbers) if weights is None else weights.double().cpu().numpy()
    found = torch.from_numpy(kmeans_levels(numbers, counted, 2**number.bits))
    levels = found.clamp(-number.max_value, number.max_value).half().float().to(rows.device)
    one = torch.ones(len(rows), device=rows.device, dtype=torch.float32)
    zero = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
    return Grid(number, one, zero, symmetric=True, levels=levels)


def scale_type_of(tensor_format: TensorFormat, numerics: Numerics) -> str:
    """What the scales of a format are stored in, one of ``SCALE_FORMATS``.

    Args:
        tensor_format: One that needs a scale; where it names a type itself, that one.
        numerics: Of the target: those of groups are in fp16, unless it says otherwise.
    """
    is_group = tensor_format.granularity is Granularity.GROUP
    return tensor_format.scale or (numerics.group_scale if is_group else numerics.scale)


def _block_grid(
    blocks: Tensor, number: NumberFormat, method: RangeMethod, numerics: Numerics
) -> Grid:
    """The grid of a microscaling format, ``[B]`` scales for ``[B, block]`` numbers."""
    factor = 1.0
    if number.has_tensor_scale and numerics.tensor_scale == "power-of-two":
        largest = float(torch.maximum(-blocks.amin(), blocks.amax())) if blocks.numel() else 0.0
        factor = _into_range(largest, number)
    ends = _in_tiles(blocks, lambda some: method.ends(some.float() * factor, number, True))
    grid = make_grid(number, True, *ends)
    return replace(grid, scale=grid.scale / factor)


def _into_range(largest: float, number: NumberFormat) -> float:
    """The largest power of two that keeps the scale of a weight's largest number within fp8.

    Times a power of two, every number of a block stays exact in float32 and bfloat16, whether a
    reader multiplies or divides by it.
    """
    if largest == 0.0:
        return 1.0
    exponent = floor(log2(LARGEST_BLOCK_SCALE * number.max_value / largest))
    # What is multiplied, and the scales that are divided, stay normal numbers of float32.
    return float(2.0 ** min(max(exponent, -100), 100))


def quantize_rows(rows: Tensor, tensor_format: TensorFormat, grid: Grid | None) -> Tensor:
    """A weight ``[O, K]`` as it is after storing it in a format.

    Some channels at a time: nothing else is made of the whole weight.

    Args:
        rows: The weight ``[O, K]``, a row per output channel.
        tensor_format: The format; its granularity says which numbers share a scale.
        grid: Its ``weight_grid``; unused by formats without a scale.
    """
    if tensor_format.is_exact:
        return rows
    found = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for some in row_tiles(rows):
        found[some] = quantize_some(rows, some, tensor_format, grid)
    return found


def quantize_some(
    rows: Tensor,
    some: slice | Tensor,
    tensor_format: TensorFormat,
    grid: Grid | None,
    work: Tensor | None = None,
) -> Tensor:
    """Some channels ``[r, K]`` of what ``quantize_rows`` gives.

    Args:
        rows: The whole weight ``[O, K]``.
        some: Which of its rows.
        tensor_format: As in ``quantize_rows``.
        grid: Of the whole weight.
        work: Contiguous memory of ``r K`` float32; see ``Grid.round``.
    """
    part, number = rows[some], tensor_format.number
    if tensor_format.is_exact:
        return part
    if not number.needs_scale:
        return round_float(part.float(), number).to(rows.dtype)
    assert grid is not None
    shared = sharing_scale(part, tensor_format)
    if work is not None:
        work = work.view(shared.shape) if work.numel() == shared.numel() else None
    rounded = grid.part(some, len(rows)).round(shared, work)
    if tensor_format.granularity is Granularity.GROUP:
        # Without the zeros that filled up the last group.
        return rounded.reshape(len(part), -1)[:, : part.shape[1]]
    return rounded.reshape(part.shape)


def row_tiles(rows: Tensor) -> Iterator[slice]:
    """Which rows of ``[O, K]`` are worked on at once: about 1 MiB in float32, at least one."""
    step = max(1, NUMBERS_AT_ONCE // max(rows.shape[1], 1))
    return (slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step))


def sharing_scale(rows: Tensor, tensor_format: TensorFormat) -> Tensor:
    """The weight with one row per scale; the last group of a channel is filled up with zeros.

    Where no code stands for 0, with the mean magnitude of the group's numbers; where the zero point
    is a fraction, with their mean.
    """
    if tensor_format.granularity is Granularity.TENSOR:
        return rows.reshape(1, -1)
    if tensor_format.group_size is None:
        return rows
    size = tensor_format.group_size
    # In Python the remainder of a negative number is what is missing to the next multiple. Neither
    # zeros, which every range holds, nor means move the range that is best.
    missing = -rows.shape[1] % size
    if missing and (tensor_format.float_zero or not tensor_format.number.has_zero):
        last = rows[:, missing - size :].float()
        last = (last if tensor_format.float_zero else last.abs()).mean(dim=1, keepdim=True)
        return torch.cat([rows, last.to(rows.dtype).expand(-1, missing)], dim=1).reshape(-1, size)
    # Without a copy where nothing is missing.
    return (F.pad(rows, (0, missing)) if missing else rows).reshape(-1, size)


def quantize_activation(
    x: Tensor,
    tensor_format: TensorFormat,
    calibrated: ActivationRange | None,
    token_axes: int,
    numerics: Numerics = OWN,
    channel_axis: int = -1,
) -> Tensor:
    """A layer's input as it is after storing it in a format.

    Args:
        x: Any shape, the batch first.
        tensor_format: Static formats need a range.
        calibrated: The range; unused by dynamic formats and those without a scale.
        token_axes: How many trailing axes make up one token: 1 for a Linear, all but the batch
            for a convolution (then a token is an example).
        numerics: How a symmetric dynamic format finds its scale, and how codes are rounded.
        channel_axis: Where input channels are, for a format with a scale for each.
    """
    number = tensor_format.number
    if tensor_format.is_exact:
        return x
    if not number.needs_scale:
        return round_float(x.float(), number).to(x.dtype)
    if tensor_format.granularity is Granularity.TOKEN:
        rows = x.reshape(-1, x.shape[-token_axes:].numel())
        return _dynamic(rows, tensor_format, numerics).reshape(x.shape)
    if tensor_format.granularity is Granularity.TOKEN_BLOCK:
        return _by_block(x, tensor_format, token_axes, numerics, channel_axis)
    assert calibrated is not None
    if calibrated.channels:
        return _by_channel(x, tensor_format, calibrated, numerics, channel_axis)
    found = _static(x, tensor_format, calibrated, numerics)
    if calibrated.first is not None and token_axes == 1 and has_positions(x):
        apart = _static(x[..., :1, :], tensor_format, ActivationRange(*calibrated.first), numerics)
        return torch.cat([apart, found[..., 1:, :]], dim=-2)
    return found


def _dynamic(rows: Tensor, tensor_format: TensorFormat, numerics: Numerics) -> Tensor:
    """``[R, K]`` each row on the grid from its smallest to its largest number."""
    number = tensor_format.number
    # The extremes, whatever the range method: a runtime has no time to search for every token.
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    grid = make_grid(number, tensor_format.symmetric, low, high)
    if grid.symmetric and not number.is_float and numerics.symmetric_dynamic == "amax/127.5":
        grid = _half_a_code_more(grid, torch.maximum(-low, high))
    return _rounding(grid, numerics).round(rows)


def _by_block(
    x: Tensor,
    tensor_format: TensorFormat,
    token_axes: int,
    numerics: Numerics,
    channel_axis: int,
) -> Tensor:
    """Every token's blocks of input channels, each at its width and on a grid of its own."""
    size = tensor_format.group_size
    assert size is not None
    blocks = to_blocks(x, size, token_axes, channel_axis)
    found = torch.empty_like(blocks)
    widths = widths_of(tensor_format, x.shape[channel_axis])
    for own, places in zip(tensor_format.by_channel, widths, strict=True):
        here = places.to(x.device)
        rows = blocks[:, here]
        found[:, here] = _dynamic(rows.flatten(0, 1), own, numerics).view(rows.shape)
    return from_blocks(found, x, size, channel_axis)


def _static(
    x: Tensor, tensor_format: TensorFormat, calibrated: ActivationRange, numerics: Numerics
) -> Tensor:
    grid = _rounding(static_grid(tensor_format, calibrated, x.device), numerics)
    return grid.round(x.reshape(1, -1)).view_as(x)


def _by_channel(
    x: Tensor,
    tensor_format: TensorFormat,
    calibrated: ActivationRange,
    numerics: Numerics,
    channel_axis: int,
) -> Tensor:
    """Every channel on a grid of its own."""
    grid = _rounding(_channel_grid(tensor_format, calibrated, x.device), numerics)
    channels = x.movedim(channel_axis, 0)
    rounded = grid.round(channels.reshape(len(channels), -1))
    return rounded.view(channels.shape).movedim(0, channel_axis)


def _rounding(grid: Grid, numerics: Numerics) -> Grid:
    return grid if grid.number.is_float else replace(grid, rounding=numerics.input_rounding)


def _half_a_code_more(grid: Grid, largest: Tensor) -> Grid:
    """The grid on which the largest magnitude lies half a code beyond the largest code."""
    steps = (2**grid.number.bits - 1) / 2
    # As torchao and compressed-tensors do it; a row of zeros needs some scale.
    scale = (largest.float() / steps).clamp_min(torch.finfo(torch.float32).eps)
    return Grid(grid.number, scale, grid.zero_point, grid.symmetric)


@lru_cache(maxsize=65536)  # an entry is two numbers; making one takes as long as rounding 100,000
def static_grid(
    tensor_format: TensorFormat, calibrated: ActivationRange, device: torch.device
) -> Grid:
    """The grid of a static activation format, one row, with a calibrated range."""
    # A tensor made in inference mode is refused by autograd, and this one is kept for every caller.
    with torch.inference_mode(False):
        low = torch.tensor([calibrated.low], device=device, dtype=torch.float32)
        high = torch.tensor([calibrated.high], device=device, dtype=torch.float32)
        number = tensor_format.number
        if number.is_twin:
            number = number.with_octaves(calibrated.octaves, calibrated.low < 0)
        return make_grid(number, tensor_format.symmetric, low, high)


@lru_cache(maxsize=4096)
def _channel_grid(
    tensor_format: TensorFormat, calibrated: ActivationRange, device: torch.device
) -> Grid:
    """The grid of a static activation format, a row for each input channel."""
    with torch.inference_mode(False):
        ends = torch.tensor(calibrated.channels, device=device, dtype=torch.float32)
        return make_grid(tensor_format.number, tensor_format.symmetric, ends[:, 0], ends[:, 1])
