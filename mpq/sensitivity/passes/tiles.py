"""Several copies of a batch at once, so that one pass can try a layer in several precisions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, final

import torch
from torch import Tensor, nn

from mpq._support.progress import track
from mpq.network.arguments import input_of, with_input
from mpq.network.examples import Batch
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import quantized
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.checkpoint import Resumable, left_batches
from mpq.sensitivity.passes.prefix import (
    PrefixReuse,
    Recording,
    forward_replaced,
    reusing,
)

_TILE_ELEMENTS = 2**23
"""Numbers that the layers may write in one pass over all copies. On a CPU core, six copies at once
take a third of the time of one by one with 2**20 numbers, as long with 2**24, and longer beyond."""
_SAME = 1e-5
"""How far, relative to the largest output, that of a copy may be from that of the batch alone."""


@final
@dataclass(frozen=True)
class Cell:
    """What the network says with one layer in one precision.

    Args:
        precision: The candidate that the layer is tried at.
        original: ``[N, P, C]`` of the original network, computed in the same way.
        changed: ``[N, P, C]`` with the layer in that precision.
    """

    precision: Precision
    original: Tensor
    changed: Tensor


@final
@dataclass(frozen=True, eq=False)
class Tile:
    """Copies of a batch, and the layers that take one precision per copy.

    Args:
        on: The network, and how it is quantized.
        reuse: Passes of the same network.
        batch: All copies, one behind the other.
        copies: How many; 1: the batch as it is.
        axes: Layer name to the axis of its input along which the copies lie.
    """

    on: Estimation
    reuse: PrefixReuse
    batch: Batch
    copies: int
    axes: dict[str, int]

    def cells(
        self, recording: Recording, original: Tensor, layer: str, precisions: Sequence[Precision]
    ) -> Iterator[Cell]:
        """One layer in each precision.

        Args:
            recording: What was recorded of ``batch``.
            original: ``[copies * N, P, C]`` what ``Cell.original`` is taken from.
            layer: Name of a layer that is among ``axes``.
            precisions: Any number; the last pass is filled up with original precisions.
        """
        for start in range(0, len(precisions), self.copies):
            group = precisions[start : start + self.copies]
            filled = (*group, *(ORIGINAL,) * (self.copies - len(group)))
            with precision_per_copy(self.on, layer, filled, self.axes[layer]):
                changed = self.reuse.outputs(recording, layer)
            parts = zip(original.chunk(self.copies), changed.chunk(self.copies), strict=True)
            # Not strict: copies that only fill up the pass are dropped.
            for precision, (before, after) in zip(group, parts, strict=False):
                yield Cell(precision, before, after)


@final
class Tiling:
    """Splits the work on a batch into tiles.

    One tile has the batch alone. With ``batched``, where batches are small, a second one has as
    many copies as there are precisions, within ``_TILE_ELEMENTS``, and takes the layers for which
    that gives the same: whether it does is tried once, on the first such batch. It does not for a
    layer that all examples share, and for none in a network that mixes examples.

    Args:
        on: The network, how it is quantized, and the candidates that layers will be tried in.
        reuse: Passes of the same network.
        batched: Whether to have several copies.
    """

    def __init__(self, on: Estimation, reuse: PrefixReuse, batched: bool) -> None:
        self._on = on
        self._reuse = reuse
        self._precisions = [on.candidates[column] for column in on.tried]
        # A larger batch draws other numbers.
        is_drawing = on.network.allow_randomness is not None
        # Of copies nobody knows the step of each row.
        is_stepped = on.quantizer.steps is not None
        is_batched = batched and not is_drawing and not is_stepped
        self._axes: dict[str, int] | None = None if is_batched else {}

    def tiles(self, batch: Batch) -> list[Tile]:
        """At most two, each with at least one layer; together they have every layer once."""
        copies = 1 if self._axes == {} else self._copies(batch)
        if copies > 1 and self._axes is None:
            self._axes = tileable(self._on, batch, self._precisions[:copies])
        axes = self._axes if copies > 1 and self._axes else {}
        alone = {x.name: 0 for x in self._on.network.layers if x.name not in axes}
        tiles = [self._tile(batch, 1, alone)] if alone else []
        return [*tiles, self._tile(batch.repeated(copies), copies, axes)] if axes else tiles

    def _tile(self, batch: Batch, copies: int, axes: dict[str, int]) -> Tile:
        return Tile(self._on, self._reuse, batch, copies, axes)

    def _copies(self, batch: Batch) -> int:
        """Precisions in as few passes as possible, the passes evenly filled."""
        elements = batch.size * sum(layer.output_elements for layer in self._on.network.layers)
        most = min(len(self._precisions), max(1, _TILE_ELEMENTS // elements))
        # `most` is 0 where no candidate changes anything.
        return ceil(len(self._precisions) / ceil(len(self._precisions) / most)) if most else 1


def measure_layers(
    on: Estimation,
    batched: bool,
    measure: Callable[[Tiling, Batch], Iterator[str]],
    purpose: str,
    parts: Mapping[str, Resumable],
) -> None:
    """Hands every batch to a measurement, and shows how many layers are done.

    Args:
        on: Network, examples, quantizer and candidates.
        batched: Whether several precisions are tried in one pass; see ``Tiling``.
        measure: Yields a layer's name each time that one is done with a batch.
        purpose: For the progress bar.
        parts: What it fills, for ``on.division``.
    """
    data = on.data
    batches = data.uncut.num_batches
    with reusing(on.network) as reuse:
        tiling = Tiling(on, reuse, batched)
        left = left_batches(on.network.batches(data.uncut), parts, on.division)
        pieces = (piece for batch in left for piece in batch.pieces(data.at_once))
        layers = (name for piece in pieces for name in measure(tiling, piece))
        # The number of batches is unknown until the data have been read once.
        for _ in track(layers, purpose, batches and batches * len(on.names)):
            pass


@contextmanager
def precision_per_copy(
    on: Estimation, layer: str, precisions: Sequence[Precision], axis: int
) -> Iterator[None]:
    """Within this block a layer computes equal parts of its input, each in its own precision."""
    layer_module = on.network.layer_module(layer)
    forward = layer_module.forward

    def by_copy(*args: Any, **kwargs: Any) -> Tensor:
        outputs, x = [], input_of(args, kwargs)
        assert x is not None  # a plain layer, which reads a tensor
        for part, precision in zip(x.chunk(len(precisions), axis), precisions, strict=True):
            # By hand, because the module's `forward` is called past its hooks.
            rounded = on.rounded_input(layer, part, precision.activation)
            weight_only = replace(precision, activation=ORIGINAL.activation)
            with quantized(on.network, {layer: weight_only}, on.quantizer):
                args, kwargs = with_input(args, kwargs, rounded)
                outputs.append(forward(*args, **kwargs))
        return torch.cat(outputs, axis)

    if len(precisions) == 1:
        with quantized(on.network, {layer: precisions[0]}, on.quantizer):
            yield
    else:
        with forward_replaced({layer_module: by_copy}):
            yield


def tileable(on: Estimation, batch: Batch, precisions: Sequence[Precision]) -> dict[str, int]:
    """Layers that several precisions can be tried in at once, and the axis of the copies.

    Args:
        on: The network, and how it is quantized.
        batch: On the network's device.
        precisions: One per copy; a layer is tried in them, at once and one by one.
    """
    tile, network = batch.repeated(len(precisions)), on.network
    with torch.no_grad():
        inputs = _inputs(network, batch)
        try:
            axes = _axes(inputs, _inputs(network, tile), batch.size, len(precisions))
            if axes and _gives_the_same(on, batch, tile, precisions, axes):
                return axes
        except (RuntimeError, ValueError, IndexError):
            pass  # it takes batches of one size only, or memory holds no copies
    return {}


def _inputs(network: Network, batch: Batch) -> dict[str, list[Tensor]]:
    """What every plain layer reads, call by call."""
    # Of a forward of its own nothing is known: its other arguments may have copies, too.
    plain = [layer.name for layer in network.layers if not layer.has_own_forward]
    found: dict[str, list[Tensor]] = {name: [] for name in plain}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        assert x is not None
        found[name].append(x)

    with hooks(
        network.layer_module(n).register_forward_pre_hook(partial(keep, n), with_kwargs=True)
        for n in found
    ):
        network.outputs(batch)
    return found


def _axes(
    alone: Mapping[str, list[Tensor]],
    together: Mapping[str, list[Tensor]],
    size: int,
    copies: int,
) -> dict[str, int]:
    found = {}
    for name in alone:
        calls = list(zip(alone[name], together[name], strict=True))
        axes = {_copy_axis(one, tiled, copies) for one, tiled in calls}
        axis = axes.pop() if len(axes) == 1 else None
        # What a later call reads depends on the precision, and so may how many rows it has.
        if axis is not None and (len(calls) == 1 or all(x.shape[axis] == size for x, _ in calls)):
            found[name] = axis
    return found


def _copy_axis(one: Tensor, together: Tensor, copies: int) -> int | None:
    """Along which axis ``together`` is copies of ``one``, if it is."""
    # The first axis, or the second in a sequence-first network (``Layer.batch_axis``).
    axes = range(min(one.ndim, 2))
    return next((a for a in axes if _is_close(torch.cat([one] * copies, a), together)), None)


def _is_close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or not expected.numel():
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    # `_SAME` is finer than the steps of half precision, where a few steps are allowed instead.
    bound = max(_SAME, 8 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool((found - expected).abs().max() <= bound)


def _gives_the_same(
    on: Estimation,
    batch: Batch,
    tile: Batch,
    precisions: Sequence[Precision],
    axes: Mapping[str, int],
) -> bool:
    """Tries the first layer whose precision makes a difference."""
    for layer, axis in axes.items():
        one_by_one = []
        for precision in precisions:
            with quantized(on.network, {layer: precision}, on.quantizer):
                one_by_one.append(on.network.outputs(batch))
        if any(not torch.equal(outputs, one_by_one[0]) for outputs in one_by_one):
            with precision_per_copy(on, layer, precisions, axis):
                return _is_close(torch.cat(one_by_one), on.network.outputs(tile))
    return False
