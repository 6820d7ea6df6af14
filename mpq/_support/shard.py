"""A share of work that several processes do, each its own: ``2/4`` is the second of four."""

import re
from dataclasses import dataclass
from typing import Self, final

from mpq.errors import InputError


@final
@dataclass(frozen=True, order=True)
class Shard:
    """Consecutive items out of all.

    Args:
        count: How many shards there are.
        number: Which one, from 1.

    Raises:
        InputError: If there is no such one.
    """

    count: int
    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"shard {self}: shards are counted from 1 to their number, as in 1/4 to 4/4"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``2/4``.

        >>> Shard.parse("2/4")
        Shard(count=4, number=2)

        Raises:
            InputError: If it is nothing like that.
        """
        found = re.fullmatch(r"\s*(\d{1,6})/(\d{1,6})\s*", text, re.ASCII)
        if found is None:
            raise InputError(f"shard {text!r}: write NUMBER/COUNT, such as 1/4")
        return cls(int(found[2]), int(found[1]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def span(self, num_items: int, what: str) -> range:
        """The items of this shard; sizes of two shards differ by one at most.

        >>> [list(Shard(3, i).span(7, "batches")) for i in (1, 2, 3)]
        [[0, 1], [2, 3], [4, 5, 6]]

        Args:
            num_items: How many there are.
            what: They are, for the message.

        Raises:
            InputError: If there are fewer items than shards.
        """
        if num_items < self.count:
            raise InputError(
                f"{num_items} {what} cannot be split into {self.count} shares: give smaller ones, "
                f"or split into {num_items} at most"
            )
        first, end = (num_items * i // self.count for i in (self.number - 1, self.number))
        return range(first, end)
