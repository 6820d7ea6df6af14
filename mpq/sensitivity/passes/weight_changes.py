"""What formats do to one layer's weight, some channels at a time, and products with gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self, final

import torch
from torch import Tensor, nn

from mpq.network.tracing import kind_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.channel_bits import GROUPS, INPUTS
from mpq.quantization.precision import ORIGINAL
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.rounding import row_tiles
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.channel_products import ChannelProducts
from mpq.sensitivity.passes.units import OF_OUTPUTS, Units
from mpq.sensitivity.passes.weight_gradients import CallGradients, PlainCall

WORK_ELEMENTS = 2**20
"""Numbers (4 MiB in float32) of some examples' gradients that are multiplied at once. Larger
buffers are slower: they leave the processor's cache."""
SPREAD_ELEMENTS = 2**22
"""The same of gradients that are computed whole, or of what a convolution's kernel meets."""


@final
@dataclass(frozen=True, eq=False)
class WeightChanges:
    """What each of ``F`` formats does to a layer's weight, in float32.

    Args:
        name: The layer's.
        layer_module: Its module; it may hold another weight by now.
        original: The original weight, in its own shape.
        held: The format that changes are from; exact for the original network.
        formats: ``[F]`` formats of weights.
        quantizer: How they are rounded.
        units: Parts of the weight that are priced by themselves, ``U`` of them.
    """

    name: str
    layer_module: nn.Module
    original: Tensor
    held: TensorFormat
    formats: Sequence[TensorFormat]
    quantizer: Quantizer
    units: Units = OF_OUTPUTS

    @classmethod
    def of_original(cls, on: Estimation, name: str) -> Self:
        """Of a layer of the original network, in all formats of the candidates."""
        layer_module, formats = on.network.layer_module(name), on.weights.formats
        weight = on.network.weight(name)
        exact, units = ORIGINAL.weight, on.units(name)
        return cls(name, layer_module, weight, exact, formats, on.quantizer, units)

    @cached_property
    def rows(self) -> Tensor:
        """The original weight as ``[O, K]``."""
        return layout_of(self.layer_module).to_rows(self.original)

    def of(self, some: slice | Tensor, into: Tensor) -> None:
        """Of some channels, into contiguous float32 ``[F, r, K]``."""
        rounded = partial(self.quantizer.rounded_rows, self.name, self.rows)
        held = rounded(self.held, some)
        for tensor_format, change in zip(self.formats, into, strict=True):
            if tensor_format == self.held:
                change.zero_()
            else:
                # In float32 also for weights in half precision, whose differences it holds exactly.
                change.copy_(rounded(tensor_format, some, work=change)).sub_(held)

    def empty(self, num_rows: int) -> Tensor:
        """Memory ``[F, r, K]`` for ``of``."""
        shape = (len(self.formats), num_rows, self.rows.shape[1])
        return torch.empty(shape, device=self.rows.device, dtype=torch.float32)

    def no_squares(self) -> Tensor:
        """``[U, F]`` float64 zeros, where squares are added up."""
        shape = (self.units.count(*self.rows.shape), len(self.formats))
        return torch.zeros(shape, dtype=torch.float64, device=self.rows.device)

    def squares(self, counts: Tensor | None = None) -> Tensor:
        """``[U, F]`` float64: squared changes, added up over each unit.

        Args:
            counts: ``[D]`` in the weight's own layout, what each square counts; ``None``: 1.
        """
        found = self.no_squares()
        layout, shape = layout_of(self.layer_module), self.original.shape
        by_row = None if counts is None else layout.to_rows(counts.view(shape))
        for some in row_tiles(self.rows):
            tile = self.empty(some.stop - some.start)
            self.of(some, tile)
            # Format by format in float64, which holds squares of the smallest numbers, too.
            for column, change in enumerate(tile):
                squares = change.double().square_()
                counted = squares if by_row is None else squares.mul_(by_row[some])
                self.add(found[:, column], some, self.units.sums(counted))
        return found

    def add(self, found: Tensor, some: slice | Tensor, sums: Tensor) -> None:
        """Adds what units have of some channels to ``[U, ...]``, in place."""
        self.units.add(found, some, sums, self.rows.shape[1])

    @cached_property
    def whole(self) -> Tensor:
        """``[F, O, K]`` of the whole weight."""
        found = self.empty(len(self.rows))
        for some in row_tiles(self.rows):
            tile = self.empty(some.stop - some.start)
            self.of(some, tile)
            found[:, some] = tile
        return found

    def as_rows(self, gradient: Tensor) -> Tensor:
        """``[O, K]`` from ``[D]``, a gradient in the weight's own layout."""
        return layout_of(self.layer_module).to_rows(gradient.view(self.original.shape))


@final
@dataclass(frozen=True, eq=False)
class PassProducts:
    """What one backward pass says of a layer.

    Args:
        found: Where its products are added up.
        calls: Those of the layer, in any order.
    """

    found: ChannelProducts
    calls: Sequence[CallGradients]


def add_products(passes: Sequence[PassProducts], changes: WeightChanges, group: int) -> None:
    """Adds inner products of a weight's gradients and its changes, over the calls of a batch.

    Weights of linear layers are rounded some channels at a time, once for all calls and passes; of
    embeddings only the rows that are read, each of which is a channel. Nothing but a tile of it
    stays in memory. Calls of linear layers are added up before channels are squared, those of other
    layers count as channels of their own.

    Args:
        passes: Backward passes, each by itself.
        changes: Of the layer's weight.
        group: Consecutive examples in one of the ``S`` groups.
    """
    kind = kind_of(changes.layer_module)
    if kind == "linear":
        _add_linear(passes, changes, group)
    for each in passes:
        for call in each.calls:
            is_plain = isinstance(call, PlainCall)
            if kind == "embedding" and isinstance(call, PlainCall):
                _add_table(each.found, call, changes, group)
            # A convolution, or a forward of its own.
            elif kind != "linear" or not is_plain:
                _add_whole(each.found, call, changes, group)


def _add_linear(passes: Sequence[PassProducts], changes: WeightChanges, group: int) -> None:
    parts = [
        (each.found, part)
        for each in passes
        for call in each.calls
        if isinstance(call, PlainCall)
        for part in parts_of(call, group)
    ]
    if not parts:
        return
    tiles = list(row_tiles(changes.rows))
    buffer = changes.empty(tiles[0].stop) if tiles else changes.empty(0)
    summed = _Summed(parts, changes)
    for some in tiles:
        tile = buffer[:, : some.stop - some.start]
        changes.of(some, tile)
        products = [_products(part, some, tile, changes.units) for _, part in parts]
        summed.add(some, products)
    summed.end()


def _products(part: "Part", some: slice, tile: Tensor, units: Units) -> Tensor:
    """``[S, u, F]`` of some channels, from what formats do to them, ``[F, r, K]``."""
    step = max(1, WORK_ELEMENTS // max(tile[0].numel(), 1))
    pairs = zip(part.x.split(step), part.g.split(step), strict=True)
    return torch.cat([units.products(g[..., some].mT @ x, tile) for x, g in pairs])


class _Summed:
    """Products of units, over the calls of a layer, before they are squared.

    Units that all channels have a share in are whole only when all tiles were seen.
    """

    def __init__(
        self, parts: "Sequence[tuple[ChannelProducts, Part]]", changes: WeightChanges
    ) -> None:
        self._parts, self._changes = parts, changes
        self._left = list[Tensor]()

    def add(self, some: slice, products: list[Tensor]) -> None:
        """``[S, u, F]`` of each part, of some channels."""
        units = self._changes.units
        if units.axis == INPUTS:
            pairs = zip(self._left, products, strict=True)
            self._left = [a.add_(b) for a, b in pairs] if self._left else products
            return
        index = units.index(some, self._changes.rows.shape[1])
        assert isinstance(index, slice)
        self._put(index, products)

    def end(self) -> None:
        """After the last tile."""
        if self._left:
            self._put(slice(None), self._left)

    def _put(self, index: slice, products: Sequence[Tensor]) -> None:
        by_group: dict[ChannelProducts, Tensor] = {}
        for (found, part), of_part in zip(self._parts, products, strict=True):
            if part.rows is None:
                found.add_batch(index, of_part[0])
                continue
            if found not in by_group:
                by_group[found] = of_part.new_zeros(len(found.whole), *of_part.shape[1:])
            by_group[found][part.rows] += of_part
        for found, summed in by_group.items():
            found.add(index, summed)


def _add_table(found: ChannelProducts, call: PlainCall, changes: WeightChanges, group: int) -> None:
    step = max(1, WORK_ELEMENTS // max(changes.rows.shape[1], 1))
    for part in parts_of(call, group):
        num_groups, num_places = part.x.flatten(1).shape
        groups = torch.arange(num_groups, device=part.x.device).repeat_interleave(num_places)
        # By row of the table, so that each is rounded once; a row that several groups read counts
        # once for each.
        ids, gradients = part.x.flatten(), part.g.flatten(0, 1)
        pairs, which = torch.stack([ids, groups]).unique(dim=1, return_inverse=True)
        summed = gradients.new_zeros(pairs.shape[1], gradients.shape[1])
        summed.index_add_(0, which, gradients)
        total = None
        if changes.units.axis == INPUTS:
            count = changes.units.count(*changes.rows.shape)
            total = gradients.new_zeros(num_groups, count, len(changes.formats))
        for (read, owners), g in zip(pairs.split(step, dim=1), summed.split(step), strict=True):
            rows, place = read.unique_consecutive(return_inverse=True)
            change = changes.empty(len(rows))
            changes.of(rows, change)
            if total is not None:
                total.index_add_(0, owners, _of_blocks(changes.units, g, change, place))
                continue
            if changes.units.axis == GROUPS:
                blocks = _of_blocks(changes.units, g, change, place)
                index = changes.units.index(read, changes.rows.shape[1])
                assert isinstance(index, Tensor)
                read, owners = index, owners.repeat_interleave(blocks.shape[1])
                products = blocks.flatten(0, 1)
            else:
                products = torch.stack([torch.linalg.vecdot(g, c[place]) for c in change], dim=1)
            if part.rows is None:
                found.add_batch(read, products)
            else:
                found.add_rows(owners + part.rows.start, read, products)
        if total is not None:
            _put_whole(found, part, total)


def _of_blocks(units: Units, g: Tensor, change: Tensor, place: Tensor) -> Tensor:
    """``[m, b, F]`` of rows that were read: their gradients ``[m, K]``, and changes of each."""
    return torch.stack([units.blocks(g * c[place]).sum(dim=-1) for c in change], dim=-1)


def _put_whole(found: ChannelProducts, part: "Part", products: Tensor) -> None:
    """``[S, U, F]`` of all channels together."""
    if part.rows is None:
        found.add_batch(slice(None), products[0])
        return
    every = products.new_zeros(len(found.whole), *products.shape[1:])
    every[part.rows] = products
    found.add(slice(None), every)


def _add_whole(
    found: ChannelProducts, call: CallGradients, changes: WeightChanges, group: int
) -> None:
    """Where gradients are not made channel by channel."""
    change, count = changes.whole, len(found.whole)  # [F, O, K]

    def products(gradients: Tensor) -> Tensor:
        rows = [changes.as_rows(g) for g in gradients]
        return changes.units.products(torch.stack(rows), change)

    if not call.is_split:
        found.add_batch(slice(None), products(call.whole())[0])
        return
    # Per example: what its kernel meets, and its part in its group's gradient.
    size = max(1, call.spread, change[0].numel() // group)
    step = max(1, SPREAD_ELEMENTS // size // group)
    parts = [slice(i * group, (i + step) * group) for i in range(0, count, step)]
    found.add(slice(None), torch.cat([products(call.sums(part, group)) for part in parts]))


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Some groups of examples, with as many positions each.

    Args:
        x: ``[S, P, ...]`` what was read.
        g: ``[S, P, O]`` gradients of the output.
        rows: Which rows of the result they are; ``None``: of the whole batch, not split.
    """

    x: Tensor
    g: Tensor
    rows: slice | None


def parts_of(call: PlainCall, group: int) -> list[Part]:
    """A group is treated as one example with more positions, over which gradients are summed."""
    is_table = kind_of(call.layer_module) == "embedding"

    def part(x: Tensor, g: Tensor, size: int, rows: slice | None) -> Part:
        last = () if is_table else x.shape[-1:]
        x = x if is_table else x.to(g.dtype)
        num = len(x) // size
        return Part(x.reshape(num, -1, *last), g.reshape(num, -1, g.shape[-1]), rows)

    if call.inputs is None or call.outputs is None:
        return [part(call.x, call.g, len(call.x), None)]
    whole = len(call.inputs) // group
    x, g = call.part(slice(0, whole * group))
    parts = [part(x, g, group, slice(0, whole))] if whole else []
    if whole * group < len(call.inputs):
        x, g = call.part(slice(whole * group, len(call.inputs)))
        parts.append(part(x, g, len(x), slice(whole, whole + 1)))
    return parts
