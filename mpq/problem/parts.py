"""Rows of a problem that are parts of layers: of weights, or blocks of what layers read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.json_arrays import columns as whole_numbers
from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import merge_ties
from mpq.problem.cost_table import CostTable
from mpq.problem.split import ACTIVATIONS, STEPS
from mpq.quantization.channel_bits import INPUTS, OUTPUTS, ChannelBits
from mpq.quantization.precision import Precision
from mpq.quantization.step_bits import StepBits
from mpq.quantization.tensor_format import TensorFormat


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """Which rows ``R`` of a problem are parts of which layers.

    Args:
        layers: ``[L]`` names, in the network's order; the rows of a layer are neighbours.
        of_channels: Layer name to ``[O]``, the part that every output channel is in, from 0 on;
            a layer that is not in it is one row. Where parts are of inputs or groups, these one
            after the other: each is a part.
        blocks: Layer name to how many consecutive channels, or inputs, are a part; other channels
            need not be neighbours.
        owners: Layers that share the weight of another one, and which: they have no row.
        code_bits: What saying which part has which precision takes, at the most.
        axis: What parts are of, as in ``ChannelBits``; or ``ACTIVATIONS``: blocks of what a layer
            reads; or ``STEPS``: what it reads at clusters of a diffusion's steps.
        inputs: Layer name to ``K``, where they are of inputs or groups, or of what is read.
        tied: Layers that are as many parts, which have the same bits one by one.
        examples: ``[T]`` of clusters of steps, where parts are these.

    Raises:
        InputError: If they contradict each other.
    """

    layers: tuple[str, ...]
    of_channels: Mapping[str, Columns] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    code_bits: int = 0
    axis: str = OUTPUTS
    inputs: Mapping[str, int] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    examples: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.layers)
        if len(known) != len(self.layers):
            raise InputError("parts: a layer is named twice")
        named = {*self.of_channels, *self.blocks, *self.owners, *self.owners.values()}
        named |= {name for tie in self.tied for name in tie}
        for name in sorted(named - known):
            raise UnknownNameError("layer with parts", name, known)
        if not self.owners.keys().isdisjoint({*self.owners.values(), *self.of_channels}):
            raise InputError("parts: a layer that shares another one's weight has none of its own")
        for name, parts in self.of_channels.items():
            is_outputs = self.axis == OUTPUTS
            self._check_parts(name, parts, self.blocks.get(name, 1) if is_outputs else 1)
            if self.axis == STEPS and len(parts) != len(self.examples):
                raise InputError(f"parts of {name!r}: they are as many as clusters of steps")
            if self._is_by_block and len(parts) % self._blocks_of_row(name):
                raise InputError(f"parts of {name!r}: they are no whole rows of blocks of inputs")
        for tie in self.tied:
            if len({self._count(name) for name in tie}) > 1:
                raise InputError(f"parts of {', '.join(tie)}: tied layers have as many parts")

    @property
    def _is_by_block(self) -> bool:
        """Whether parts are blocks of inputs."""
        return self.axis not in (OUTPUTS, STEPS)

    def _blocks_of_row(self, name: str) -> int:
        return -(-self.inputs[name] // self.blocks[name])

    @staticmethod
    def _check_parts(name: str, parts: Columns, block: int) -> None:
        count = int(parts.max()) + 1
        # Rows are counted by the last part: one without channels would be a row of nothing.
        if count > len(parts) or not np.bincount(parts, minlength=count).all():
            raise InputError(f"parts of {name!r}: each from 0 to {count - 1} has a channel")
        if block > 1 and not np.array_equal(parts, np.arange(len(parts)) // block):
            raise InputError(f"parts of {name!r}: each is of {block} channels that are neighbours")

    @cached_property
    def counts(self) -> Columns:
        """``[L]`` rows of every layer."""
        return np.array([self._count(name) for name in self.layers], dtype=np.intp)

    def _count(self, name: str) -> int:
        if name in self.owners:
            return 0
        return int(self.of_channels[name].max()) + 1 if name in self.of_channels else 1

    @cached_property
    def starts(self) -> Columns:
        """``[L]`` the first row of every layer."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.intp)

    @cached_property
    def shares(self) -> Array:
        """``[R]`` the share of its layer's channels, or weights, that a row has."""
        found = [
            self._shares(name) if name in self.of_channels else np.ones(count)
            for name, count in zip(self.layers, self.counts.tolist(), strict=True)
        ]
        return np.concatenate(found)

    def _shares(self, name: str) -> Array:
        parts = self.of_channels[name]
        if self.axis == OUTPUTS:
            return np.asarray(np.bincount(parts) / len(parts))
        if self.axis == STEPS:
            return np.array(self.examples) / sum(self.examples)
        size, inputs, blocks = self.blocks[name], self.inputs[name], self._blocks_of_row(name)
        sizes = np.minimum(size, inputs - size * np.arange(blocks))
        rows = len(parts) // blocks
        return np.tile(sizes, rows) / (inputs * rows)

    @cached_property
    def row_names(self) -> tuple[str, ...]:
        """``[R]``: a layer's name, or with the number of the part, ``conv1[3]``."""
        return tuple(
            f"{name}[{part}]" if name in self.of_channels else name
            for name, count in zip(self.layers, self.counts.tolist(), strict=True)
            for part in range(count)
        )

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Layers that share a weight, and so all of its parts, or are tied part by part."""
        shared = [(owner, name) for name, owner in self.owners.items()]
        return merge_ties([*shared, *self.tied], self.layers)

    @property
    def row_ties(self) -> tuple[tuple[str, ...], ...]:
        """Rows that have the same bits."""
        names = self.row_names
        by_layer = [[names[self.rows_of(name)] for name in tie] for tie in self.tied]
        return tuple(rows for tie in by_layer for rows in zip(*tie, strict=True))

    def rows_of(self, name: str) -> slice:
        """The rows of a layer; of one that shares a weight those of its owner."""
        place = self.layers.index(self.owners.get(name, name))
        start = int(self.starts[place])
        return slice(start, start + int(self.counts[place]))

    def spread(self, values: Array) -> Array:
        """``[R, B]`` from ``[L, B]``: every row gets its share of what its layer has.

        What a layer has that shares another one's weight goes to that.
        """
        owned = np.array(values, dtype=np.float64)
        for name, owner in self.owners.items():
            owned[self.layers.index(owner)] += owned[self.layers.index(name)]
        return np.repeat(owned, self.counts, axis=0) * self.shares[:, None]

    def table(self, table: CostTable, constant: float = 0.0) -> CostTable:
        """``[R, B]`` of a cost ``[L, B]`` that is a sum over channels.

        Args:
            table: Of layers, without costs of pairs.
            constant: What saying which part has which precision costs.
        """
        values, names = self.spread(table.values), self.row_names
        whole = table.constant + constant
        return replace(table, layers=names, values=values, constant=whole, scores={})

    def by_layer(self, cells: Array) -> Array:
        """``[L]`` sums of ``[R]`` over the rows of every layer."""
        sums = np.concatenate([[0.0], np.cumsum(cells)])
        return np.asarray(sums[self.starts + self.counts] - sums[self.starts])

    def precisions_of(
        self, columns: Columns, precisions: Sequence[Precision]
    ) -> dict[str, Precision]:
        """Layer name to precision of a choice ``[R]`` among ``[B]``."""
        return {name: self._precision(name, columns, precisions) for name in self.layers}

    def _precision(self, name: str, columns: Columns, precisions: Sequence[Precision]) -> Precision:
        owner, chosen = self.owners.get(name, name), columns[self.rows_of(name)]
        first: Precision = precisions[int(chosen[0])]
        if (chosen == chosen[0]).all():
            return first
        if self.axis == STEPS:
            numbers = [precision.activation.number for precision in precisions]
            steps = StepBits.of(numbers, chosen.tolist(), self.examples)
            read = replace(first.activation, number=steps.numbers[-1], steps=steps)
            return replace(first, activation=read)
        is_read = self.axis == ACTIVATIONS
        own = [_divided(precision, is_read) for precision in precisions]
        parts, block = self.of_channels[owner], self.blocks.get(owner, 1)
        is_by_block = block > 1 or self.axis != OUTPUTS
        by_block = chosen if is_by_block else chosen[parts]
        count = len(parts) if self.axis == OUTPUTS else self.inputs[owner]
        axis = INPUTS if is_read else self.axis
        found = ChannelBits.of([x.number for x in own], by_block, count, block, axis)
        assert isinstance(found, ChannelBits)  # there are two columns, hence two formats
        mixed = replace(_divided(first, is_read), number=found.numbers[-1], channels=found)
        return replace(first, activation=mixed) if is_read else replace(first, weight=mixed)

    def columns_of(
        self, chosen: Mapping[str, Precision], precisions: Sequence[Precision]
    ) -> Columns:
        """``[R]``, the inverse of ``precisions_of``.

        Raises:
            UnknownNameError: If a precision is none of those.
        """
        place = {precision: column for column, precision in enumerate(precisions)}
        found = np.zeros(int(self.counts.sum()), dtype=np.intp)
        for name in self.layers:
            if name not in self.owners:
                found[self.rows_of(name)] = self._columns(name, chosen[name], place)
        return found

    def _columns(self, name: str, precision: Precision, place: Mapping[Precision, int]) -> Columns:
        if self.axis == STEPS:
            widths = precision.activation.by_step or (precision.activation,)
            return np.array(
                [place[replace(precision, activation=x)] for x in widths], dtype=np.intp
            )
        is_read = self.axis == ACTIVATIONS
        divided = _divided(precision, is_read)
        own = [
            replace(precision, activation=x) if is_read else replace(precision, weight=x)
            for x in divided.by_channel
        ]
        for each in own:
            if each not in place:
                raise UnknownNameError("precision", str(each), map(str, place))
        found = np.array([place[each] for each in own], dtype=np.intp)
        channels = divided.channels
        if channels is None or name not in self.of_channels:
            return found[:1]
        if self.axis != OUTPUTS:
            return found[np.frombuffer(channels.codes, dtype=np.uint8)]
        _, first = np.unique(self.of_channels[name], return_index=True)
        return found[channels.columns[first]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "layers": list(self.layers),
            "of_channels": {name: parts.tolist() for name, parts in self.of_channels.items()},
            "blocks": dict(self.blocks),
            "owners": dict(self.owners),
            "code_bits": self.code_bits,
            # Files without them are read by earlier versions as well.
            **({} if self.axis == OUTPUTS else {"axis": self.axis, "inputs": dict(self.inputs)}),
            **({"examples": list(self.examples)} if self.examples else {}),
            **({"tied": list(map(list, self.tied))} if self.tied else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a part is no whole number.
            InputError: If they contradict each other.
        """
        parts = {n: whole_numbers(x, f"parts: {n}") for n, x in data["of_channels"].items()}
        axis, inputs = data.get("axis", OUTPUTS), data.get("inputs", {})
        names, owners = tuple(data["layers"]), data["owners"]
        if (
            axis not in (OUTPUTS, STEPS)
            and not parts.keys() <= inputs.keys() & data["blocks"].keys()
        ):
            raise InputError("parts of inputs: a layer lacks its number of inputs, or of a block")
        blocks, tied = data["blocks"], tuple(map(tuple, data.get("tied", ())))
        examples = tuple(data.get("examples", ()))
        return cls(names, parts, blocks, owners, data["code_bits"], axis, inputs, tied, examples)


def _divided(precision: Precision, is_read: bool) -> TensorFormat:
    """What has parts."""
    return precision.activation if is_read else precision.weight


def can_split(weight: TensorFormat, like: TensorFormat, axis: str = OUTPUTS) -> bool:
    """Whether parts of one weight may be in these two formats: they differ in bits alone."""
    both = weight.has_parts(axis) and like.has_parts(axis) and weight.symmetric == like.symmetric
    return both and replace(weight, number=like.number) == like


def can_split_read(read: TensorFormat, like: TensorFormat) -> bool:
    """Whether blocks of what is read may be in these two formats: they differ in bits alone."""
    both = read.has_blocks and like.has_blocks
    return both and replace(read, number=like.number) == like


def can_differ_by_step(read: TensorFormat, like: TensorFormat) -> bool:
    """Whether what is read may be in these two formats at other steps: they differ in bits."""
    both = read.is_scaled_integer and like.is_scaled_integer
    return both and replace(read, number=like.number) == like
