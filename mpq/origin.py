"""What made a result."""

from dataclasses import dataclass
from typing import final

from mpq.refining import Refinement


@final
@dataclass(frozen=True)
class Origin:
    """Names of what made a result, for its record.

    Args:
        estimator: Name of the estimator.
        device: Name of the device, if there is one.
        seed: Of estimator and solver.
        refinements: Rounds in which the estimate was made anew at the incumbent.
    """

    estimator: str
    device: str | None
    seed: int
    refinements: tuple[Refinement, ...] = ()
