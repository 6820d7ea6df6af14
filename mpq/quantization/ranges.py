"""Ranges of numbers, and the rules that choose them."""

from dataclasses import dataclass
from typing import Literal, final

from mpq.errors import UnknownNameError

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


@final
@dataclass(frozen=True)
class Ranges:
    """How the ranges of integer formats are chosen.

    Args:
        weight: Rule for a weight's range, one of ``RANGE_METHODS``.
        activation: Rule for the range of a layer's input over the calibration examples.

    Raises:
        UnknownNameError: If there is no such rule.
    """

    weight: RangeMethod = "mse"
    activation: RangeMethod = "mse"

    def __post_init__(self) -> None:
        for method in (self.weight, self.activation):
            if method not in RANGE_METHODS:
                raise UnknownNameError("range method", method, RANGE_METHODS)
