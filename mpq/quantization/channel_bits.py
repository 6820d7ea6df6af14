"""Parts that have bits of their own: of a weight channels, inputs or groups; of a read, blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Final, Self, final

from mpq._support.json_object import quoted
from mpq.errors import PrecisionError
from mpq.quantization.formats import spelled_format
from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from mpq._support.arrays import Columns

OUTPUTS: Final = "outputs"
INPUTS: Final = "inputs"
GROUPS: Final = "groups"
MARKS: Final = {OUTPUTS: "", INPUTS: "i", GROUPS: "g"}
"""How a precision's spelling says what its digits are of."""
MOST_BITS: Final = 8
"""Of channels: their codes lie beside each other in bytes."""
SIGNS: Final = "binary"
"""The format of 1 bit, which integers begin beyond: its codes are -1 and 1."""
_SPELLED: Final = "1"
"""How it is written beside integers."""
MOST_CHANNELS: Final = 2**24
"""Of one weight; no vocabulary is as large."""


@final
@dataclass(frozen=True)
class ChannelBits:
    """Which of several formats, integers, signs or 0 bits, every part of a weight is stored in.

    The weight is ``[O, K]``.

    >>> found = ChannelBits.of([spelled_format(n) for n in "234"], [2, 0, 2, 2])
    >>> str(found), found.mean_bits, found.code_bits
    ('[2,4]:1011', 3.5, 4)
    >>> ChannelBits.parse("1,4", "0001", 4, 1).mean_bits
    1.75

    Args:
        numbers: ``[F]`` the formats that parts are in, at least two, by rising bits.
        codes: A byte for each part: which of the formats it is in; of groups, row by row.
        num_channels: Output channels, ``O``; where parts are of inputs, these: ``K``.
        block: Consecutive channels, or inputs, that share a byte; the last block may be short.
        axis: What parts are: blocks of ``outputs``, blocks of ``inputs`` (of all outputs), or
            ``groups`` (blocks of inputs, of each output by itself).

    Raises:
        PrecisionError: If the parts contradict each other, a format is neither signs nor integers
            of up to 8 bits (of 0 bits: 0 alone), or there are more channels than any weight has.
    """

    numbers: tuple[NumberFormat, ...]
    codes: bytes
    num_channels: int
    block: int = 1
    axis: str = OUTPUTS

    def __post_init__(self) -> None:
        bits = [number.bits for number in self.numbers]
        if not all(map(is_of_parts, self.numbers)):
            names = ", ".join(number.name for number in self.numbers)
            raise PrecisionError(
                f"channels have integers of up to {MOST_BITS} bits, or signs ({SIGNS}); got {names}"
            )
        if len(bits) < 2 or bits != sorted(set(bits)):
            raise PrecisionError(f"channels have two or more widths, rising; got {bits}")
        what = "output channels" if self.axis == OUTPUTS else "inputs of a row"
        if self.num_channels > MOST_CHANNELS:
            # A short text may speak of any number of them, and each takes memory.
            raise PrecisionError(
                f"a weight has at most {MOST_CHANNELS} {what}; got {self.num_channels}"
            )
        expected = self._blocks
        rows = len(self.codes) // expected if self.axis == GROUPS and expected else 1
        is_whole = len(self.codes) == max(rows, 1) * expected
        if not is_whole or set(self.codes) != set(range(len(bits))):
            what = what.removeprefix("output ")
            raise PrecisionError(
                f"{self.num_channels} {what} in blocks of {self.block} at {bits} bits need "
                f"{expected} codes in which each width occurs; got {len(self.codes)}"
            )

    @property
    def _blocks(self) -> int:
        """Of channels, or of the inputs of a row."""
        return ceil(self.num_channels / self.block) if self.block > 0 else 0

    @classmethod
    def of(
        cls,
        numbers: Sequence[NumberFormat],
        columns: "Sequence[int] | Columns",
        num_channels: int | None = None,
        block: int = 1,
        axis: str = OUTPUTS,
    ) -> Self | NumberFormat:
        """From a column for every block; one format alone where all have the same.

        Args:
            numbers: ``[B]`` formats that columns are of, in any order.
            columns: The column of each block.
            num_channels: ``O``, or ``K``; ``None``: as many as columns.
            block: Consecutive channels or inputs that share a column.
            axis: See the class.
        """
        used = sorted({*map(int, columns)}, key=lambda column: numbers[column].bits)
        if len(used) == 1:
            return numbers[used[0]]
        place = {column: code for code, column in enumerate(used)}
        codes = bytes(place[int(column)] for column in columns)
        count = len(codes) if num_channels is None else num_channels
        return cls(tuple(numbers[column] for column in used), codes, count, block, axis)

    @classmethod
    def parse(
        cls, bits: str, codes: str, num_channels: int, block: int, axis: str = OUTPUTS
    ) -> Self:
        """Inverse of ``str``, from its parts.

        Args:
            bits: A digit for each format: ``1`` for signs, others as ``spelled_format`` has them.
            codes: As digits.
            num_channels: See the class.
            block: See the class.
            axis: See the class.

        Raises:
            PrecisionError: If they contradict each other.
        """
        texts = [SIGNS if text == _SPELLED else text for text in bits.split(",")]
        numbers = tuple(map(spelled_format, texts))
        return cls(numbers, bytes(map(int, codes)), num_channels, block, axis)

    @cached_property
    def _text(self) -> str:
        bits = ",".join(
            _SPELLED if number.name == SIGNS else number.spellings[0] for number in self.numbers
        )
        has_size = self.block > 1 or self.axis == GROUPS
        size = f"{self.num_channels}/{self.block}x" if has_size else ""
        return f"[{bits}]:{MARKS[self.axis]}{size}{''.join(map(str, self.codes))}"

    def __str__(self) -> str:
        return self._text

    @cached_property
    def columns(self) -> "Columns":
        """``[O]`` the format of every channel; of inputs ``[K]``, of groups ``[O, K]``."""
        import numpy as np  # within, as the command line reads precisions without it

        return np.repeat(self._by_block, self.block, axis=-1)[..., : self.num_channels]

    @property
    def _by_block(self) -> "Columns":
        """The same of every block."""
        import numpy as np

        blocks = np.frombuffer(self.codes, dtype=np.uint8).astype(np.intp)
        return blocks.reshape(-1, self._blocks) if self.axis == GROUPS else blocks

    @property
    def cells(self) -> "Columns":
        """``[O, 1]``, ``[1, K]`` or ``[O, K]``: the format of every number of a weight."""
        return self._of_rows(self.columns)

    def _of_rows(self, columns: "Columns") -> "Columns":
        return columns[:, None] if self.axis == OUTPUTS else columns.reshape(-1, columns.shape[-1])

    def of_scales(self, size: int) -> "Columns":
        """The format of every scale: ``[O, 1]``, ``[1, S]`` or ``[O, S]``.

        Args:
            size: Consecutive inputs that share one; they are of one part.
        """
        if self.axis == GROUPS:
            return self._by_block
        return self.cells[:, ::size]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """``[F]`` channels in each format; of inputs how many are, of groups numbers."""
        import numpy as np

        blocks, size = self._by_block, self.block
        sizes = np.minimum(size, self.num_channels - size * np.arange(self._blocks))
        found = np.zeros(len(self.numbers), dtype=np.int64)
        np.add.at(found, blocks, np.broadcast_to(sizes, blocks.shape))
        return tuple(found.tolist())

    @cached_property
    def counts_of_blocks(self) -> tuple[int, ...]:
        """``[F]`` parts in each format."""
        return tuple(self.codes.count(column) for column in range(len(self.numbers)))

    def check_weight(self, layer: str, num_rows: int, num_inputs: int) -> None:
        """Refuses a weight ``[O, K]`` that has other parts, such as by digits edited by hand.

        Args:
            layer: Its name.
            num_rows: ``O``.
            num_inputs: ``K``.

        Raises:
            PrecisionError: Says what the digits are of.
        """
        if not self.fits(num_rows, num_inputs):
            rows = f" in {len(self._by_block)} rows" if self.axis == GROUPS else ""
            what = "output channels" if self.axis == OUTPUTS else "inputs"
            raise PrecisionError(
                f"layer {layer!r}: {quoted(str(self))} is of {self.num_channels} {what}{rows}, and "
                f"its weight is of {num_rows} output channels with {num_inputs} inputs each: "
                f"search again with this network"
            )

    def fits(self, num_rows: int, num_inputs: int) -> bool:
        """Whether a weight ``[O, K]`` has these parts."""
        if self.axis == OUTPUTS:
            return self.num_channels == num_rows
        is_of_rows = self.axis == INPUTS or len(self._by_block) == num_rows
        return is_of_rows and self.num_channels == num_inputs

    @property
    def code_bits(self) -> int:
        """Bits that say which block has which format."""
        return len(self.codes) * (len(self.numbers) - 1).bit_length()

    @property
    def mean_bits(self) -> float:
        """Bits of a code, averaged over the numbers of a weight."""
        pairs = zip(self.numbers, self.counts, strict=True)
        return sum(number.bits * count for number, count in pairs) / sum(self.counts)


def is_of_parts(number: NumberFormat) -> bool:
    """Whether parts of one weight may be in this format and others: integers, signs, or 0."""
    return number.name == SIGNS or (not number.is_float and number.bits <= MOST_BITS)
