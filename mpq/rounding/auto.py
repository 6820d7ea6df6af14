"""The best rounding that data bears out."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.coordinate_descent import CoordinateDescent


@final
@dataclass(frozen=True)
class AutoRounding(WeightRounding):
    """Coordinate descent, where unseen examples say that it helps; else to nearest.

    A rounding that looks at the calibration examples fits them. So it is tried first: codes from a
    part of the examples, at the fewest, the middle and the most bits of the candidates, each in the
    whole network, on the rest, beside rounding to nearest. Where none of them loses more (beyond
    its standard error), and all together less than by chance (Student's t of paired examples,
    2.5 %), all weights are rounded so, from all examples. Where that part of the examples does not
    say so, the others are left out in turn, and all are asked together (2.5 % again); else all are
    rounded to nearest. Not some formats so and
    others otherwise: prices of codes that fit the examples are too low beside prices of codes that
    do not. ``mpq.workflows.rounded_weights`` does that; for a weight alone this is coordinate
    descent.

    Args:
        share: Of the calibration examples, that a trial does not round with.
        signs: As in coordinate descent.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "coordinate descent, where unseen examples say that it helps (default)"

    share: float = 0.25
    signs: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"{self.name} needs a share between 0 and 1; got {self.share}")

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return CoordinateDescent(signs=self.signs).prepared(moment)
