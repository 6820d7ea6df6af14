"""What every way of tuning says of itself."""

from abc import ABC
from typing import ClassVar

from mpq._support.bounds import Bounded, check_whole
from mpq.errors import InputError


class Tuning(Bounded, ABC):
    """What is tuned, for how long and how fast. A subclass is a dataclass with these fields."""

    name: ClassVar[str]
    summary: ClassVar[str]
    moves_codes: ClassVar[bool]

    epochs: int
    """At most so many passes over the examples."""
    lr: float
    """Adam's largest step: of scales relative to them, of vectors to their root mean square."""
    batch_size: int
    """Examples of a step; a batch of fewer is joined with others."""
    blocks: bool
    """Whether blocks are tuned one after another, each for its own output."""
    share: float
    """Of the calibration examples: what a search keeps from rounding and prices, to decide."""

    def check(self) -> None:
        """Refuses numbers that mean nothing.

        Raises:
            InputError: Says which and what it can be.
        """
        for field in ("epochs", "batch_size"):
            if check_whole(field, getattr(self, field), f"{self.name}:{field}") < 1:
                raise InputError(f"{self.name}:{field} is at least 1; got {getattr(self, field)}")
        if not 0 < self.lr < 1:
            raise InputError(f"{self.name}:lr is between 0 and 1; got {self.lr}")
        if not 0 < self.share < 1:
            raise InputError(f"{self.name} needs a share between 0 and 1; got {self.share}")
