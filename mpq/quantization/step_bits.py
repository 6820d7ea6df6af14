"""Bits of what a layer reads that are others at other steps of a diffusion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, final

from mpq.errors import PrecisionError
from mpq.quantization.formats import spelled_format, spellings
from mpq.quantization.number_format import NumberFormat

MOST_CLUSTERS: Final = 1000
SPELLED_STEPS: Final = r"t(?P<step_examples>[0-9]{1,9}(?:/[0-9]{1,9})+)x(?P<step_codes>[0-9]+)"
"""Behind the colon of an activation: examples and a digit of every cluster."""


@final
@dataclass(frozen=True)
class StepBits:
    """Which of several integer formats what a layer reads is stored in, cluster by cluster.

    >>> found = StepBits.of([spelled_format(n) for n in "48"], [1, 0, 1], [10, 20, 10])
    >>> str(found), found.mean_bits
    ('[4,8]:t10/20/10x101', 6.0)

    Args:
        numbers: ``[F]`` the formats that clusters are in, at least two, by rising bits.
        codes: ``[T]`` which of the formats each cluster is in.
        examples: ``[T]`` calibration examples in each cluster, which are its share of the steps.

    Raises:
        PrecisionError: If the parts contradict each other, or a format is no integer.
    """

    numbers: tuple[NumberFormat, ...]
    codes: tuple[int, ...]
    examples: tuple[int, ...]

    def __post_init__(self) -> None:
        bits = [number.bits for number in self.numbers]
        if any(x.is_float or not x.has_codes for x in self.numbers):
            names = ", ".join(number.name for number in self.numbers)
            raise PrecisionError(f"clusters of steps have integers; got {names}")
        if len(bits) < 2 or bits != sorted(set(bits)):
            raise PrecisionError(f"clusters of steps have two or more widths, rising; got {bits}")
        is_whole = len(self.codes) == len(self.examples) <= MOST_CLUSTERS
        if not is_whole or set(self.codes) != set(range(len(bits))) or min(self.examples) < 1:
            raise PrecisionError(
                f"{len(self.examples)} clusters of steps at {bits} bits need as many codes, in "
                f"which each width occurs, and have an example each; got {len(self.codes)} codes "
                f"and {list(self.examples)}"
            )

    @classmethod
    def of(
        cls, numbers: Sequence[NumberFormat], columns: Sequence[int], examples: Sequence[int]
    ) -> Self:
        """From a column for every cluster, of which two are others.

        Args:
            numbers: ``[B]`` formats that columns are of, in any order.
            columns: ``[T]``.
            examples: ``[T]``.
        """
        used = sorted({*columns}, key=lambda column: numbers[column].bits)
        codes = tuple(used.index(column) for column in columns)
        return cls(tuple(numbers[column] for column in used), codes, tuple(examples))

    @classmethod
    def parse(cls, bits: str, examples: str, codes: str) -> Self:
        """Inverse of ``str``, from its parts.

        Raises:
            PrecisionError: If they contradict each other, or a format is unknown.
        """
        unknown = [text for text in bits.split(",") if text not in spellings()]
        if unknown:
            raise PrecisionError(f"clusters of steps have integers; got [{bits}]")
        numbers = tuple(map(spelled_format, bits.split(",")))
        return cls(numbers, tuple(map(int, codes)), tuple(map(int, examples.split("/"))))

    @classmethod
    def matched(cls, match: re.Match[str]) -> Self | None:
        """Of a spelled precision that ``SPELLED_STEPS`` is a part of."""
        if match["step_codes"] is None:
            return None
        if match["read_bits"] is None:
            raise PrecisionError(f"{match[0]!r}: digits of steps go with bits, such as a[4,8]")
        return cls.parse(match["read_bits"], match["step_examples"], match["step_codes"])

    def __str__(self) -> str:
        bits = ",".join(number.spellings[0] for number in self.numbers)
        examples = "/".join(map(str, self.examples))
        return f"[{bits}]:t{examples}x{''.join(map(str, self.codes))}"

    @property
    def by_cluster(self) -> tuple[NumberFormat, ...]:
        """``[T]``."""
        return tuple(self.numbers[code] for code in self.codes)

    @property
    def mean_bits(self) -> float:
        """Of a number, over examples."""
        pairs = zip(self.by_cluster, self.examples, strict=True)
        return sum(number.bits * count for number, count in pairs) / sum(self.examples)
