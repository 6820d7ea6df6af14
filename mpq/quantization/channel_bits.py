"""Output channels of one weight that have bits of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Final, Self, final

from mpq.errors import PrecisionError
from mpq.quantization.formats import spelled_format, spellings
from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from mpq._support.arrays import Columns

MOST_BITS: Final = 8
"""Of channels: their codes lie beside each other in bytes."""
MOST_CHANNELS: Final = 2**24
"""Of one weight; no vocabulary is as large."""


@final
@dataclass(frozen=True)
class ChannelBits:
    """Which of several integer formats every output channel of a weight is stored in.

    >>> found = ChannelBits.of([spelled_format(n) for n in "234"], [2, 0, 2, 2])
    >>> str(found), found.mean_bits, found.code_bits
    ('[2,4]:1011', 3.5, 4)

    Args:
        numbers: ``[F]`` the formats that channels are in, at least two, by rising bits.
        codes: A byte for each block of channels: which of the formats it is in.
        num_channels: ``O``.
        block: Consecutive channels that share a byte; the last block may be short.

    Raises:
        PrecisionError: If the parts contradict each other, a format is no integer of up to 8 bits,
            or there are more channels than any weight has.
    """

    numbers: tuple[NumberFormat, ...]
    codes: bytes
    num_channels: int
    block: int = 1

    def __post_init__(self) -> None:
        bits = [number.bits for number in self.numbers]
        if any(x.is_float or not x.needs_scale or x.bits > MOST_BITS for x in self.numbers):
            names = ", ".join(number.name for number in self.numbers)
            raise PrecisionError(f"channels have integers of up to {MOST_BITS} bits; got {names}")
        if len(bits) < 2 or bits != sorted(set(bits)):
            raise PrecisionError(f"channels have two or more widths, rising; got {bits}")
        if self.num_channels > MOST_CHANNELS:
            # A short text may speak of any number of them, and each takes memory.
            raise PrecisionError(
                f"a weight has at most {MOST_CHANNELS} output channels; got {self.num_channels}"
            )
        expected = ceil(self.num_channels / self.block) if self.block > 0 else 0
        if len(self.codes) != expected or set(self.codes) != set(range(len(bits))):
            raise PrecisionError(
                f"{self.num_channels} channels in blocks of {self.block} at {bits} bits need "
                f"{expected} codes in which each width occurs; got {len(self.codes)}"
            )

    @classmethod
    def of(
        cls,
        numbers: Sequence[NumberFormat],
        columns: "Sequence[int] | Columns",
        num_channels: int | None = None,
        block: int = 1,
    ) -> Self | NumberFormat:
        """From a column for every block; one format alone where all have the same.

        Args:
            numbers: ``[B]`` formats that columns are of, in any order.
            columns: The column of each block.
            num_channels: ``O``; ``None``: as many as columns.
            block: Consecutive channels that share a column.
        """
        used = sorted({*map(int, columns)}, key=lambda column: numbers[column].bits)
        if len(used) == 1:
            return numbers[used[0]]
        place = {column: code for code, column in enumerate(used)}
        codes = bytes(place[int(column)] for column in columns)
        count = len(codes) if num_channels is None else num_channels
        return cls(tuple(numbers[column] for column in used), codes, count, block)

    @classmethod
    def parse(cls, bits: str, codes: str, num_channels: int, block: int) -> Self:
        """Inverse of ``str``, from its parts.

        Raises:
            PrecisionError: If they contradict each other, or a format is unknown.
        """
        unknown = [text for text in bits.split(",") if text not in spellings()]
        if unknown:
            raise PrecisionError(
                f"channels have integers of 2 to {MOST_BITS} bits; got w[{bits}], in which "
                f"{unknown[0]} is none"
            )
        numbers = tuple(map(spelled_format, bits.split(",")))
        return cls(numbers, bytes(map(int, codes)), num_channels, block)

    @cached_property
    def _text(self) -> str:
        bits = ",".join(number.spellings[0] for number in self.numbers)
        size = f"{self.num_channels}/{self.block}x" if self.block > 1 else ""
        return f"[{bits}]:{size}{''.join(map(str, self.codes))}"

    def __str__(self) -> str:
        return self._text

    @cached_property
    def columns(self) -> "Columns":
        """``[O]`` which of the formats every channel is in."""
        import numpy as np  # within, as the command line reads precisions without it

        blocks = np.frombuffer(self.codes, dtype=np.uint8).astype(np.intp)
        return np.repeat(blocks, self.block)[: self.num_channels]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """``[F]`` channels in each format."""
        columns = self.columns.tolist()
        return tuple(columns.count(column) for column in range(len(self.numbers)))

    @property
    def code_bits(self) -> int:
        """Bits that say which block has which format."""
        return len(self.codes) * (len(self.numbers) - 1).bit_length()

    @property
    def mean_bits(self) -> float:
        """Bits of a code, averaged over channels."""
        pairs = zip(self.numbers, self.counts, strict=True)
        return sum(number.bits * count for number, count in pairs) / self.num_channels
