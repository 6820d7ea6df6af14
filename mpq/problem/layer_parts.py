"""The parts of one layer, of its weight or of what it reads, and how bits of them are spelled."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError, UnknownNameError
from mpq.problem.split import ACTIVATIONS, STEPS
from mpq.quantization.channel_bits import INPUTS, OUTPUTS, ChannelBits
from mpq.quantization.precision import Precision
from mpq.quantization.step_bits import StepBits
from mpq.quantization.tensor_format import TensorFormat

Places: TypeAlias = Mapping[Precision, int]
"""Of every candidate its column."""


class LayerParts(ABC):
    """Parts ``P`` of a layer that each have bits of their own."""

    @property
    @abstractmethod
    def axis(self) -> str:
        """What they are of, as in ``Split.axis``."""

    @property
    @abstractmethod
    def units(self) -> Columns:
        """``[U]`` the part that each output channel is in, or each block; from 0 on."""

    @property
    @abstractmethod
    def shares(self) -> Array:
        """``[P]`` the share of the layer's numbers that each has; they add up to 1."""

    @abstractmethod
    def mixed(self, chosen: Columns, precisions: Sequence[Precision]) -> Precision:
        """The layer's precision.

        Args:
            chosen: ``[P]`` columns of ``precisions``, of which two are others.
            precisions: ``[B]``.
        """

    @abstractmethod
    def columns(self, precision: Precision, places: Places) -> Columns:
        """``[P]``, the inverse of ``mixed``; ``[1]`` of a layer that is whole.

        Raises:
            UnknownNameError: If a part's precision is none of ``places``.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as ``read_layer_parts`` reads it together with ``axis``."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many codes say which part has which precision."""

    @final
    @property
    def count(self) -> int:
        """``P``."""
        return int(self.units.max()) + 1


@final
@dataclass(frozen=True, eq=False)
class OutputParts(LayerParts):
    """Output channels of a weight.

    Args:
        part_of: ``[O]`` the part that every channel is in.
        block: Consecutive channels that are a part; 1: they need not be neighbours.

    Raises:
        InputError: If a part has no channel, or one that is not in its block.
    """

    part_of: Columns
    block: int = 1

    def __post_init__(self) -> None:
        count = int(self.part_of.max()) + 1
        # Rows are counted by the last part: one without channels would be a row of nothing.
        if count > len(self.part_of) or not np.bincount(self.part_of, minlength=count).all():
            raise InputError(f"each from 0 to {count - 1} has a channel")
        if self.block > 1 and not np.array_equal(
            self.part_of, np.arange(len(self.part_of)) // self.block
        ):
            raise InputError(f"each is of {self.block} channels that are neighbours")

    @property
    def axis(self) -> str:
        """``outputs``."""
        return OUTPUTS

    @property
    def units(self) -> Columns:
        """The part of every channel."""
        return self.part_of

    @property
    def shares(self) -> Array:
        """By their numbers of channels."""
        return np.asarray(np.bincount(self.part_of) / len(self.part_of))

    @property
    def num_codes(self) -> int:
        """Of blocks of neighbours, or else of every channel."""
        # Of channels that are no neighbours each says what it has.
        return len(self.part_of) if self.block == 1 else self.count

    def mixed(self, chosen: Columns, precisions: Sequence[Precision]) -> Precision:
        """Bits by output channel."""
        by_block = chosen if self.block > 1 else chosen[self.part_of]
        formats = [precision.weight for precision in precisions]
        weight = _mixed(formats, by_block, len(self.part_of), self.block, OUTPUTS)
        return replace(precisions[int(chosen[0])], weight=weight)

    def columns(self, precision: Precision, places: Places) -> Columns:
        """Of the first channel of every part."""
        found = _columns_of_weights(precision, places)
        if precision.weight.channels is None:
            return found
        _, first = np.unique(self.part_of, return_index=True)
        return found[precision.weight.channels.columns[first]]

    def to_dict(self) -> dict[str, Any]:
        """With the part of every channel."""
        return {"of_channels": self.part_of.tolist(), "blocks": self.block}


@final
@dataclass(frozen=True)
class InputParts(LayerParts):
    """Blocks of the inputs of a weight's rows, of all rows together or row by row.

    Args:
        of: ``inputs`` or ``groups``, as in ``ChannelBits``.
        num_inputs: ``K``, weights of a row.
        block: Consecutive ones that are a part; the last may be short.
        num_parts: ``P``: blocks of a row, or of all rows.

    Raises:
        InputError: If these are no whole rows.
    """

    of: str
    num_inputs: int
    block: int
    num_parts: int

    def __post_init__(self) -> None:
        if self.num_parts % len(self._sizes):
            raise InputError("they are no whole rows of blocks of inputs")

    @property
    def _sizes(self) -> Columns:
        """Of the blocks of a row."""
        return _sizes(self.num_inputs, self.block)

    @property
    def axis(self) -> str:
        """``inputs`` or ``groups``."""
        return self.of

    @property
    def units(self) -> Columns:
        """Each block is a part."""
        return np.arange(self.num_parts)

    @property
    def shares(self) -> Array:
        """By their numbers of inputs."""
        rows = self.num_parts // len(self._sizes)
        return np.tile(self._sizes, rows) / (self.num_inputs * rows)

    @property
    def num_codes(self) -> int:
        """One a part."""
        return self.count

    def mixed(self, chosen: Columns, precisions: Sequence[Precision]) -> Precision:
        """Bits by block of inputs."""
        formats = [precision.weight for precision in precisions]
        weight = _mixed(formats, chosen, self.num_inputs, self.block, self.of)
        return replace(precisions[int(chosen[0])], weight=weight)

    def columns(self, precision: Precision, places: Places) -> Columns:
        """By block of inputs."""
        found = _columns_of_weights(precision, places)
        return _by_code(found, precision.weight.channels)

    def to_dict(self) -> dict[str, Any]:
        """With the numbers of inputs, of a row and of a block."""
        return {**_numbered(self), "blocks": self.block, "inputs": self.num_inputs}


@final
@dataclass(frozen=True)
class ReadParts(LayerParts):
    """Blocks of the channels that a layer reads.

    Args:
        num_inputs: Channels.
        block: Consecutive ones that are a part; the last may be short.
    """

    num_inputs: int
    block: int

    @property
    def axis(self) -> str:
        """``activations``."""
        return ACTIVATIONS

    @property
    def units(self) -> Columns:
        """Each block is a part."""
        return np.arange(len(_sizes(self.num_inputs, self.block)))

    @property
    def shares(self) -> Array:
        """By their numbers of channels."""
        return np.asarray(_sizes(self.num_inputs, self.block) / self.num_inputs)

    @property
    def num_codes(self) -> int:
        """One a part."""
        return self.count

    def mixed(self, chosen: Columns, precisions: Sequence[Precision]) -> Precision:
        """Bits by block of what is read."""
        formats = [precision.activation for precision in precisions]
        read = _mixed(formats, chosen, self.num_inputs, self.block, INPUTS)
        return replace(precisions[int(chosen[0])], activation=read)

    def columns(self, precision: Precision, places: Places) -> Columns:
        """By block of what is read."""
        read = precision.activation
        found = _columns((replace(precision, activation=x) for x in read.by_channel), places)
        return _by_code(found, read.channels)

    def to_dict(self) -> dict[str, Any]:
        """With the numbers of channels, of all and of a block."""
        return {**_numbered(self), "blocks": self.block, "inputs": self.num_inputs}


@final
@dataclass(frozen=True)
class StepParts(LayerParts):
    """What a layer reads at clusters of a diffusion's steps.

    Args:
        examples: ``[T]`` calibration examples of each cluster.
    """

    examples: tuple[int, ...]

    @property
    def axis(self) -> str:
        """``steps``."""
        return STEPS

    @property
    def units(self) -> Columns:
        """Each cluster is a part."""
        return np.arange(len(self.examples))

    @property
    def shares(self) -> Array:
        """By their numbers of examples."""
        return np.array(self.examples) / sum(self.examples)

    @property
    def num_codes(self) -> int:
        """One a part."""
        return self.count

    def mixed(self, chosen: Columns, precisions: Sequence[Precision]) -> Precision:
        """Bits by cluster of steps."""
        numbers = [precision.activation.number for precision in precisions]
        steps = StepBits.of(numbers, chosen.tolist(), self.examples)
        first: Precision = precisions[int(chosen[0])]
        read = replace(first.activation, number=steps.numbers[-1], steps=steps)
        return replace(first, activation=read)

    def columns(self, precision: Precision, places: Places) -> Columns:
        """By cluster of steps."""
        read = precision.activation
        by_step = read.by_step or (read,)
        return _columns((replace(precision, activation=x) for x in by_step), places)

    def to_dict(self) -> dict[str, Any]:
        """With the examples of every cluster."""
        return {**_numbered(self), "examples": list(self.examples)}


def read_layer_parts(
    axis: str,
    units: Columns,
    examples: Sequence[int] = (),
    blocks: int | None = None,
    inputs: int | None = None,
) -> LayerParts:
    """Inverse of ``LayerParts.to_dict``.

    Raises:
        InputError: If something is missing, or they contradict each other.
    """
    if axis == OUTPUTS:
        return OutputParts(units, blocks or 1)
    found = _read_numbered(axis, len(units), tuple(examples), blocks, inputs)
    if not np.array_equal(units, found.units):
        raise InputError(f"they are numbered from 0 to {found.count - 1}, each once")
    return found


def _read_numbered(
    axis: str, count: int, examples: tuple[int, ...], block: int | None, inputs: int | None
) -> LayerParts:
    if axis == STEPS:
        return StepParts(examples)
    if block is None or inputs is None:
        raise InputError("it lacks its number of inputs, or of a block")
    return (
        ReadParts(inputs, block) if axis == ACTIVATIONS else InputParts(axis, inputs, block, count)
    )


def _numbered(parts: LayerParts) -> dict[str, Any]:
    return {"of_channels": parts.units.tolist()}


def _sizes(num_inputs: int, block: int) -> Columns:
    starts = np.arange(0, num_inputs, block)
    return np.minimum(block, num_inputs - starts)


def _mixed(
    formats: Sequence[TensorFormat], by_block: Columns, count: int, block: int, axis: str
) -> TensorFormat:
    found = ChannelBits.of([x.number for x in formats], by_block, count, block, axis)
    assert isinstance(found, ChannelBits)  # there are two columns, hence two formats
    return replace(formats[int(by_block[0])], number=found.numbers[-1], channels=found)


def _columns(precisions: Iterable[Precision], places: Places) -> Columns:
    found = list(precisions)
    for precision in found:
        if precision not in places:
            raise UnknownNameError("precision", str(precision), map(str, places))
    return np.array([places[precision] for precision in found], dtype=np.intp)


def _columns_of_weights(precision: Precision, places: Places) -> Columns:
    return _columns((replace(precision, weight=x) for x in precision.weight.by_channel), places)


def _by_code(columns: Columns, channels: ChannelBits | None) -> Columns:
    """``[P]`` of columns of the widths that there are."""
    return columns if channels is None else columns[np.frombuffer(channels.codes, dtype=np.uint8)]
