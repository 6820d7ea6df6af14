"""Round to nearest: the inputs are not looked at."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.stack import Stack


@final
@dataclass(frozen=True)
class Nearest(WeightRounding):
    """Every weight by itself, on the grid of its range."""

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "every weight by itself"
    reads_inputs: ClassVar[bool] = False

    def prepared(self, moment: Tensor) -> StackSolver:  # noqa: ARG002
        """See ``WeightRounding.prepared``."""
        return NearestSolver()


@final
class NearestSolver(StackSolver):
    """Looks at no other weight."""

    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        """See ``StackSolver.solve``."""
        return stack.nearest(), stack
