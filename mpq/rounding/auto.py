"""The best rounding that data bears out, format by format."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.coordinate_descent import CoordinateDescent


@final
@dataclass(frozen=True)
class AutoRounding(WeightRounding):
    """Coordinate descent, for every format in which unseen examples say that it helps.

    A rounding that looks at the calibration examples fits them. So it is tried first: codes from a
    part of the examples, every format in the whole network, on the rest, beside rounding to
    nearest. Formats that lose less by it are rounded so, from all examples; all others to nearest.
    ``mpq.workflows.rounded_weights`` does that; for a weight alone this is coordinate descent.

    Args:
        share: Of the calibration examples, that the trial does not round with.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "coordinate descent, where unseen examples say that it helps (default)"

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"{self.name} needs a share between 0 and 1; got {self.share}")

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return CoordinateDescent().prepared(moment)
