"""QuantEase: every code set to its best value given all others, over and over."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.coordinate_descent import swept
from mpq.rounding.gptq import check_damping
from mpq.rounding.objective import Objective
from mpq.rounding.stack import Stack


@final
@dataclass(frozen=True)
class QuantEase(WeightRounding):
    """Cyclic coordinate descent on codes alone (Behdin et al. 2023, arXiv:2309.01885).

    From rounding to nearest, at the scales of that, every sweep sets one code after another to the
    value that is best given all others, by the quadratic form of the damped second moment: the
    error never rises, and stops where no single code can be bettered. The paper leaves weights
    unrounded in some of its sweeps; here all are rounded in all. ``coordinate-descent`` begins at
    GPTQ's codes and finds scales as well.

    Args:
        damping: As in GPTQ.
        sweeps: At most so many, as in the paper's experiments.

    Raises:
        InputError: If there is no sweep, or the damping is not above 0.
    """

    name: ClassVar[str] = "quantease"
    summary: ClassVar[str] = "codes one by one, each the best given all others, sweep by sweep"

    damping: float = 0.01
    sweeps: int = 25

    def __post_init__(self) -> None:
        check_damping(self.name, self.damping)
        if self.sweeps < 1:
            raise InputError(f"{self.name} needs sweeps from 1 on; got {self.sweeps}")

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return _Sweeps(Objective.of(moment, self.damping), self.sweeps)


@dataclass(frozen=True, eq=False)
class _Sweeps(StackSolver):
    objective: Objective
    sweeps: int

    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        codes = stack.nearest()
        for _ in range(self.sweeps):
            before, codes = codes, swept(self.objective, stack, codes)
            if torch.equal(before, codes):
                break
        return codes, stack
