"""Ranges of numbers, and the rules that choose them."""

from dataclasses import dataclass
from typing import Literal, final

RangeMethod = Literal["minmax", "percentile", "mse"]
"""How a range is chosen: everything fits; all but the tails; least squared error."""

RANGE_METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse")


@final
@dataclass(frozen=True)
class ActivationRange:
    """Calibrated range of a layer's input: what a static format needs.

    Args:
        low: Smallest number that is represented.
        high: Largest number that is represented.
    """

    low: float
    high: float
