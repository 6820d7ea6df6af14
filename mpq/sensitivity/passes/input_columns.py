"""What every row of a layer's weight meets, position by position, in pieces of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import final

import torch
from torch import Tensor, nn

from mpq.network.tracing import kind_of
from mpq.sensitivity.passes.windows import Geometry, windows

_WORK_ELEMENTS = 2**22
"""Numbers (16 MiB in float32) that are spread out at once; larger buffers are slower, being new
memory every time."""

Piece = tuple[slice | Tensor, ...]
"""Index of some positions in what ``output_positions`` returns."""


@final
@dataclass(frozen=True)
class Lattice:
    """Every so many positions of a convolution, beginning elsewhere in every example.

    Over as many examples as ``every`` all positions are looked at equally often, and which ones
    does not depend on how the examples are split into batches.

    Args:
        every: Steps from one to the next, over all positions of an example in order; 1: all.
        first: How many examples come before those that are read.
    """

    every: int = 1
    first: int = 0

    def after(self, examples: int) -> "Lattice":
        """Of the examples that come after so many."""
        return replace(self, first=self.first + examples)

    def index(self, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Positions among ``[n, *positions]``, an index for each axis."""
        examples = torch.arange(self.first, self.first + shape[0], device=device)
        positions = torch.arange(prod(shape[1:]), device=device)
        is_kept = (examples[:, None] + positions) % self.every == 0
        return is_kept.reshape(shape).nonzero(as_tuple=True)


def output_positions(layer_module: nn.Module, output: Tensor) -> Tensor:
    """A layer's output, or its gradient, by position, its channels in a convolution's groups.

    Args:
        layer_module: A linear layer or a convolution (see ``kind_of``).
        output: ``[..., O]`` of a linear layer, ``[N, O, *positions]`` of a convolution.

    Returns:
        ``[P, 1, O]`` of a linear layer, ``[N, *positions, G, O / G]`` of a convolution.
    """
    if kind_of(layer_module) == "linear":
        return output.reshape(-1, 1, output.shape[-1])
    geometry = Geometry.of(layer_module)
    by_position = _images(output, geometry).movedim(1, -1)
    return by_position.reshape(*by_position.shape[:-1], geometry.groups, -1)


def input_columns(
    layer_module: nn.Module, x: Tensor, output: Tensor, lattice: Lattice
) -> Iterator[tuple[Piece, Tensor]]:
    """What the rows of a weight are multiplied with in one call: ``rows @ columns`` is its output.

    Args:
        layer_module: A linear layer or a convolution (see ``kind_of``), of ``G`` groups.
        x: What it reads; numbers are taken to float32.
        output: Of its output's shape.
        lattice: Which positions of a convolution; of a linear layer, all.

    Yields:
        Some of the positions, and ``[G, K, p]`` for them: what each of a row's ``K`` weights, in
        the order of ``RowLayout.to_rows``, meets there. May share the input's memory.
    """
    if kind_of(layer_module) == "linear":
        yield from _linear(x.reshape(-1, x.shape[-1]))
        return
    geometry = Geometry.of(layer_module)
    images, positions = _images(x, geometry), _images(output, geometry).shape[2:]
    of_each = images.shape[1] * prod(geometry.kernel) * prod(positions)
    step = max(1, _WORK_ELEMENTS * lattice.every // of_each)
    for start in range(0, len(images), step):
        some = images[start : start + step].float()
        met = _met(some, geometry, positions)
        if lattice.every == 1:
            for lines, columns in _all_columns(met, geometry):
                yield (slice(start, start + step), lines), columns
        else:
            index = lattice.after(start).index((len(some), *positions), some.device)
            yield (index[0] + start, *index[1:]), _some_columns(met, geometry, index)


def _linear(x: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    step = max(1, _WORK_ELEMENTS // x.shape[-1])
    for start in range(0, len(x), step):
        some = slice(start, start + step)
        yield (some,), x[some].float().t().unsqueeze(0)


def _images(tensor: Tensor, geometry: Geometry) -> Tensor:
    """``[N, C, *positions]``, where an example may have several images."""
    return tensor.flatten(0, -2 - len(geometry.kernel))


def _all_columns(met: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Windows written out, some lines (along the first axis of positions) at a time."""
    axis, groups = 2 + len(geometry.kernel), geometry.groups
    lines, inputs = met.shape[axis], prod(met.shape[1:axis]) // groups
    step = max(1, _WORK_ELEMENTS * lines // met.numel())
    for start in range(0, lines, step):
        count = min(step, lines - start)
        part = met.narrow(axis, start, count)
        part = _turned(part, geometry).movedim(0, axis - 1)  # [C, *kernel, n, *positions]
        # Channels of a group, and the kernels of each, follow each other.
        yield slice(start, start + count), part.reshape(groups, inputs, -1)


def _some_columns(met: Tensor, geometry: Geometry, index: tuple[Tensor, ...]) -> Tensor:
    dims, groups = len(geometry.kernel), geometry.groups
    at = tuple(range(2 + dims, 2 + 2 * dims))
    found = met.movedim(at, tuple(range(1, 1 + dims)))[index]  # [p, C, *kernel]
    inputs = prod(found.shape[1:]) // groups
    return _turned(found, geometry).reshape(-1, groups, inputs).permute(1, 2, 0)


def _turned(met: Tensor, geometry: Geometry) -> Tensor:
    """``[:, C, *kernel, ...]`` in the order of the weight."""
    kernel = tuple(range(2, 2 + len(geometry.kernel)))
    return met.flip(kernel) if geometry.is_transposed else met


def _met(x: Tensor, geometry: Geometry, positions: tuple[int, ...]) -> Tensor:
    """``[N, C, *kernel, *positions]``, see ``windows``; a transposed kernel is turned round."""
    if not geometry.is_transposed:
        return windows(geometry.padded(x), geometry, positions)
    # As a plain convolution over inputs with zeros between them (Dumoulin and Visin 2016,
    # arXiv:1603.07285).
    wide = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], geometry.stride, strict=True)]
    stuffed = x.new_zeros(*x.shape[:2], *wide)
    places = (slice(None, None, s) for s in geometry.stride)
    stuffed[(slice(None), slice(None), *places)] = x
    sides = []
    for place, size in enumerate(wide):
        reach = geometry.dilation[place] * (geometry.kernel[place] - 1)
        left = reach - geometry.padding[place][0]
        # By the output: a call may ask for another size than the layer's own (`output_size`).
        sides.append((left, positions[place] + reach - left - size))
    plain = replace(geometry, stride=(1,) * len(wide), padding=tuple(sides))
    return windows(plain.padded(stuffed), plain, positions)
