"""A backend of another package: it counts the layers of every precision."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from mpq.backends import Backend, Exported
from mpq.problem.assignment import Assignment


@final
@dataclass(frozen=True)
class ToyBackend(Backend):
    """One line for every precision.

    Args:
        separator: Between the precision and how many layers have it.
    """

    name: ClassVar[str] = "toy-backend"
    summary: ClassVar[str] = "how many layers have which precision"
    needs_network: ClassVar[bool] = False

    separator: str = " "

    def export(self, assignment: Assignment, model: nn.Module | None, calibration: Any) -> Exported:
        """See ``Backend.export``."""
        counted = Counter(str(layer.precision) for layer in assignment.layers)
        lines = [f"{name}{self.separator}{count}\n" for name, count in sorted(counted.items())]
        return Exported("".join(lines).encode())
