"""A limit on one resource, and the ways of writing it."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import final

import numpy as np
import numpy.typing as npt

from mpq.errors import LimitError
from mpq.problem.cost_table import CostTable

ROUNDING = 1e-12
"""Relative slack of every comparison with a limit: what adding up in another order may change.

A limit within the rounding of its own sum is met: what an assignment uses is the correctly rounded
sum ``math.fsum`` of its cells, and it is within the budget if that is at most
``limit + ROUNDING * abs(limit)``, both operations in float64. Every solver decides by this rule
(``Budget.is_met``), also whether a problem is infeasible; none has a tolerance of its own."""


@final
@dataclass(frozen=True, eq=False)
class Budget:
    """One resource and how much of it an assignment may use.

    Args:
        table: ``[L, B]`` cost of the resource.
        limit: Largest total that is allowed, in the table's unit.

    Raises:
        LimitError: If the limit is not a finite number.
    """

    table: CostTable
    limit: float

    def __post_init__(self) -> None:
        if not isfinite(self.limit):
            raise LimitError(f"{self.table.name}: the limit must be finite, got {self.limit}")
        object.__setattr__(self, "limit", float(self.limit))  # as it is read from a file

    @property
    def resource(self) -> str:
        """What is limited: of ``peak_ram@conv1``, one step of a maximum, ``peak_ram``."""
        return resource_of(self.table)

    def used(self, columns: npt.NDArray[np.intp]) -> float:
        """What an assignment uses, in the table's unit; ``columns [L]`` is a column per layer."""
        return self.table.total(columns)

    def is_met(self, columns: npt.NDArray[np.intp]) -> bool:
        """Whether the assignment stays within the limit, up to ``ROUNDING``."""
        return self.used(columns) <= self.limit + ROUNDING * abs(self.limit)


def resource_of(table: CostTable) -> str:
    """The resource that a table is one of, where several go by ``<resource>@<step>``."""
    return table.name.partition("@")[0]


def binding(budgets: Iterable[Budget], columns: npt.NDArray[np.intp]) -> tuple[Budget, ...]:
    """Of every resource the budget that an assignment uses most of, in the order of the budgets.

    A resource has several where it is a maximum, and each of them the limit of the maximum.
    """
    most: dict[str, Budget] = {}
    for budget in budgets:
        held = most.setdefault(budget.resource, budget)
        if budget.used(columns) > held.used(columns):
            most[budget.resource] = budget
    return tuple(most.values())
