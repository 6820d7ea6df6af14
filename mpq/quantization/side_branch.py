"""What a weight may have beside its codes: some weights of its own, or a product of two matrices.

Written at the end of a weight's part of a precision: ``w3g64+s0.5%`` and ``w3g64+r16``. No torch
here: a problem's file names its formats and is read without it.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil
from typing import Final, Self, final

from mpq.errors import PrecisionError

NUMBER_BITS: Final = 16
"""Of one number of a branch: all are fp16."""
LARGEST_PERCENT: Final = 50.0
"""Of a weight's numbers; with more of them the codes would stand beside the weight itself."""
RULES: Final = {
    "m": "of the largest magnitude",
    "g": "of the largest gradients, squared",
    "e": "whose errors to nearest cost most, where the others of the row make good what they can",
}
"""Which weights a sparse branch keeps, by the letter behind its percents."""
_PERCENT: Final = r"[0-9]{1,2}(?:\.[0-9]{1,4})?"
_LETTERS: Final = "".join(RULES)
BRANCH: Final = (
    rf"(?:s(?P<percent>{_PERCENT})%(?P<picks>[{_LETTERS}](?:{_PERCENT}%[{_LETTERS}])*)?"
    r"|r(?P<rank>[0-9]{1,6}))"
)
"""What may follow the ``+``."""


@final
@dataclass(frozen=True)
class Pick:
    """A share of a weight's numbers that one rule keeps.

    Args:
        percent: How many of them.
        rule: Which, one of ``RULES``.
    """

    percent: float
    rule: str

    def __str__(self) -> str:
        return f"{self.percent:g}%{self.rule}"


@final
@dataclass(frozen=True, repr=False)
class Sparse:
    """Some of a weight's numbers in fp16, added to what their codes stand for.

    Args:
        percent: How many of them, above 0 and at most 50, to four digits behind the point.
        picks: By which rules, one after the other; none: those that help most, given the codes
            (``mpq.quantization.branch_fits``).

    Raises:
        PrecisionError: If the share makes no sense, or is not that of the picks together.
    """

    percent: float
    picks: tuple[Pick, ...] = ()

    @classmethod
    def of(cls, *picks: Pick) -> Self:
        """What some rules keep together."""
        return cls(round(sum(pick.percent for pick in picks), 4), picks)

    def __post_init__(self) -> None:
        if not 0 < self.percent <= LARGEST_PERCENT or round(self.percent, 4) != self.percent:
            raise PrecisionError(
                f"a sparse branch has more than 0 and at most {LARGEST_PERCENT:g} % of the "
                f"weights, to four digits behind the point; got {self.percent} %"
            )
        if self.picks and round(sum(pick.percent for pick in self.picks), 4) != self.percent:
            raise PrecisionError(f"picks of a sparse branch are not {self.percent} % together")
        if not {pick.rule for pick in self.picks} <= RULES.keys() or any(
            pick.percent <= 0 for pick in self.picks
        ):
            raise PrecisionError(
                f"a sparse branch keeps more than 0 % by each of the rules {', '.join(RULES)}; got "
                f"{self}"
            )

    def __str__(self) -> str:
        return "s" + ("".join(map(str, self.picks)) or f"{self.percent:g}%")

    def __repr__(self) -> str:
        # Journals hold it: as it was before there were rules, where there is none.
        rules = f", picks={self.picks!r}" if self.picks else ""
        return f"Sparse(percent={self.percent!r}{rules})"

    def counts(self, num_elements: int) -> list[int]:
        """How many numbers each pick keeps, all of them as many as ``count`` says.

        >>> Sparse.of(Pick(0.05, "g"), Pick(0.4, "m")).counts(10_000)
        [5, 40]
        """
        sums = accumulate(Fraction(str(pick.percent)) for pick in self.picks)
        ends = [0, *(ceil(each * num_elements / 100) for each in sums)]
        return [end - start for start, end in pairwise(ends)]

    def count(self, num_elements: int) -> int:
        """How many numbers of a weight: the share, rounded up."""
        # Of the digits as they are written, as 0.1 is no binary fraction.
        return ceil(Fraction(str(self.percent)) * num_elements / 100)

    def stored_bits(self, num_elements: int, num_channels: int) -> int:
        """Bits of its numbers and of where they are, whichever takes less.

        Either the column of each, and how many there are in every row; or a bit for every weight.

        >>> Sparse(1.0).stored_bits(100 * 64, 100)  # 64 of 16 and 6 bits, and 100 counts of 7
        2108
        """
        count, num_inputs = self.count(num_elements), num_elements // num_channels
        columns = count * (num_inputs - 1).bit_length() + num_channels * num_inputs.bit_length()
        return count * NUMBER_BITS + min(columns, num_elements)

    def macs(self, macs: int, num_elements: int, num_channels: int) -> float:  # noqa: ARG002
        """Multiply-accumulates beside the ``macs`` of a layer: its share of them."""
        return macs * self.count(num_elements) / num_elements


@final
@dataclass(frozen=True)
class LowRank:
    """A product of two matrices in fp16, ``[O, rank]`` and ``[rank, K]``, added to the codes.

    Args:
        rank: At least 1. A weight whose smaller side is less has a product of that rank.

    Raises:
        PrecisionError: If the rank makes no sense.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PrecisionError(f"a low-rank branch has a rank of at least 1; got {self.rank}")

    def __str__(self) -> str:
        return f"r{self.rank}"

    def stored_bits(self, num_elements: int, num_channels: int) -> int:
        """Bits of both matrices.

        >>> LowRank(2).stored_bits(100 * 64, 100)  # 2 * (100 + 64) of 16
        5248
        """
        return self.rank * (num_channels + num_elements // num_channels) * NUMBER_BITS

    def macs(self, macs: int, num_elements: int, num_channels: int) -> float:
        """Multiply-accumulates beside the ``macs`` of a layer: both products at every position."""
        return macs / num_elements * self.rank * (num_channels + num_elements // num_channels)


SideBranch = Sparse | LowRank
"""What stands beside codes."""


def parsed_branch(percent: str | None, picks: str | None, rank: str | None) -> SideBranch | None:
    """What ``BRANCH`` has found; ``None``: nothing."""
    if percent is not None and picks:
        found = re.findall(rf"({_PERCENT})%([{_LETTERS}])", f"{percent}%{picks}")
        return Sparse.of(*(Pick(float(share), rule) for share, rule in found))
    if percent is not None:
        return Sparse(float(percent))
    return None if rank is None else LowRank(int(rank))


def why_no_branch(branch: SideBranch | None, num_elements: int, num_channels: int) -> str:
    """Why a weight ``[O, K]`` has no place for a branch; empty: it has.

    Args:
        branch: Of its format.
        num_elements: ``O K``.
        num_channels: ``O``.
    """
    smaller = min(num_channels, num_elements // num_channels)
    if not isinstance(branch, LowRank) or branch.rank <= smaller:
        return ""
    return (
        f"a rank of {branch.rank} is more than that of its weight "
        f"[{num_channels}, {num_elements // num_channels}], {smaller}"
    )
