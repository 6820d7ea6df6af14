"""Several copies of a batch at once, so that one pass can try a layer in several precisions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, final

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity.passes.prefix import PrefixReuse, Recording, forward_replaced

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
        precision: Of the layer.
        original: ``[N, P, C]`` of the original network, computed in the same way.
        changed: ``[N, P, C]``.
    """

    precision: Precision
    original: Tensor
    changed: Tensor


@final
@dataclass(frozen=True, eq=False)
class Tile:
    """Copies of a batch, and the layers that take one precision per copy.

    Args:
        network: The network.
        quantizer: How weights and inputs are put into a format.
        reuse: Of the same network.
        batch: All copies, one behind the other.
        copies: How many; 1: the batch as it is.
        axes: Layer name to the axis of its input along which the copies lie.
    """

    network: Network
    quantizer: Quantizer
    reuse: PrefixReuse
    batch: Batch
    copies: int
    axes: dict[str, int]

    def cells(
        self, recording: Recording, original: Tensor, layer: str, precisions: Sequence[Precision]
    ) -> Iterator[Cell]:
        """One layer in each precision.

        Args:
            recording: Of ``batch``.
            original: ``[copies * N, P, C]`` what ``Cell.original`` is taken from.
            layer: The layer.
            precisions: Any number; the last pass is filled up with original precisions.
        """
        for start in range(0, len(precisions), self.copies):
            group = precisions[start : start + self.copies]
            filled = (*group, *(ORIGINAL,) * (self.copies - len(group)))
            with precision_per_copy(self.network, self.quantizer, layer, filled, self.axes[layer]):
                changed = self.reuse.outputs(recording, layer)
            parts = zip(original.chunk(self.copies), changed.chunk(self.copies), strict=True)
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
        network: The network.
        quantizer: How weights and inputs are put into a format.
        reuse: Of the same network.
        precisions: That layers will be tried in.
        batched: Whether to have several copies.
    """

    def __init__(
        self,
        network: Network,
        quantizer: Quantizer,
        reuse: PrefixReuse,
        precisions: Sequence[Precision],
        batched: bool,
    ) -> None:
        self._network = network
        self._quantizer = quantizer
        self._reuse = reuse
        self._precisions = tuple(precisions)
        self._axes: dict[str, int] | None = None if batched else {}

    def tiles(self, batch: Batch) -> list[Tile]:
        """At most two, each with at least one layer; together they have every layer once."""
        copies = 1 if self._axes == {} else self._copies(batch)
        if copies > 1 and self._axes is None:
            self._axes = tileable(self._network, self._quantizer, batch, self._precisions[:copies])
        axes = self._axes if copies > 1 and self._axes else {}
        alone = {x.name: 0 for x in self._network.layers if x.name not in axes}
        tiles = [self._tile(batch, 1, alone)] if alone else []
        return [*tiles, self._tile(copied(batch, copies), copies, axes)] if axes else tiles

    def _tile(self, batch: Batch, copies: int, axes: dict[str, int]) -> Tile:
        return Tile(self._network, self._quantizer, self._reuse, batch, copies, axes)

    def _copies(self, batch: Batch) -> int:
        """Precisions in as few passes as possible, the passes evenly filled."""
        elements = batch.size * sum(layer.output_elements for layer in self._network.layers)
        most = min(len(self._precisions), max(1, _TILE_ELEMENTS // elements))
        return ceil(len(self._precisions) / ceil(len(self._precisions) / most)) if most else 1


def copied(batch: Batch, copies: int) -> Batch:
    """Every tensor that has the examples along its first axis, so many times."""
    size = batch.size
    return batch.map(
        lambda t: t.repeat(copies, *[1] * (t.ndim - 1)) if t.ndim and len(t) == size else t
    )


@contextmanager
def precision_per_copy(
    network: Network, quantizer: Quantizer, layer: str, precisions: Sequence[Precision], axis: int
) -> Iterator[None]:
    """Within this block a layer computes equal parts of its input, each in its own precision."""
    layer_module = network.layer_module(layer)
    forward = layer_module.forward

    def by_copy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs = []
        for part, precision in zip(x.chunk(len(precisions), axis), precisions, strict=True):
            rounded = quantizer.activation(layer, layer_module, part, precision.activation)
            weight_only = replace(precision, activation=ORIGINAL.activation)
            with quantized(network, {layer: weight_only}, quantizer):
                outputs.append(forward(rounded, *args, **kwargs))
        return torch.cat(outputs, axis)

    if len(precisions) == 1:
        with quantized(network, {layer: precisions[0]}, quantizer):
            yield
    else:
        with forward_replaced({layer_module: by_copy}):
            yield


def tileable(
    network: Network, quantizer: Quantizer, batch: Batch, precisions: Sequence[Precision]
) -> dict[str, int]:
    """Layers that several precisions can be tried in at once, and the axis of the copies.

    Args:
        network: The network.
        quantizer: How weights and inputs are put into a format.
        batch: On the network's device.
        precisions: One per copy; a layer is tried in them, at once and one by one.
    """
    tile = copied(batch, len(precisions))
    with torch.no_grad():
        inputs = _inputs(network, batch)
        try:
            axes = _axes(network, inputs, _inputs(network, tile), batch.size, len(precisions))
            if axes and _gives_the_same(network, quantizer, batch, tile, precisions, axes):
                return axes
        except (RuntimeError, ValueError, IndexError):
            pass  # the network takes batches of one size only
    return {}


def _inputs(network: Network, batch: Batch) -> dict[str, list[Tensor]]:
    """What every layer reads, call by call."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in network.layers}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found[name].append(args[0])

    with hooks(network.layer_module(n).register_forward_pre_hook(partial(keep, n)) for n in found):
        network.outputs(batch)
    return found


def _axes(
    network: Network,
    alone: Mapping[str, list[Tensor]],
    together: Mapping[str, list[Tensor]],
    size: int,
    copies: int,
) -> dict[str, int]:
    found = {}
    for layer in network.layers:
        calls = list(zip(alone[layer.name], together[layer.name], strict=True))
        axes = {_copy_axis(one, tiled, copies) for one, tiled in calls}
        axis = axes.pop() if len(axes) == 1 else None
        # What a later call reads depends on the precision, and so may how many rows it has.
        if axis is not None and (len(calls) == 1 or all(x.shape[axis] == size for x, _ in calls)):
            found[layer.name] = axis
    return found


def _copy_axis(one: Tensor, together: Tensor, copies: int) -> int | None:
    """Along which axis ``together`` is copies of ``one``, if it is."""
    axes = range(min(one.ndim, 2))
    return next((a for a in axes if _is_close(torch.cat([one] * copies, a), together)), None)


def _is_close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or not expected.numel():
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    bound = max(_SAME, 8 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool((found - expected).abs().max() <= bound)


def _gives_the_same(
    network: Network,
    quantizer: Quantizer,
    batch: Batch,
    tile: Batch,
    precisions: Sequence[Precision],
    axes: Mapping[str, int],
) -> bool:
    """Tries the first layer whose precision makes a difference."""
    for layer, axis in axes.items():
        one_by_one = []
        for precision in precisions:
            with quantized(network, {layer: precision}, quantizer):
                one_by_one.append(network.outputs(batch))
        if any(not torch.equal(outputs, one_by_one[0]) for outputs in one_by_one):
            with precision_per_copy(network, quantizer, layer, precisions, axis):
                return _is_close(torch.cat(one_by_one), network.outputs(tile))
    return False
