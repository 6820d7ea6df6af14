"""What an assignment has to keep, whatever is lost: limits, ties, given and possible precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class Constraints:
    """The half of a ``Problem`` that is known before the loss is estimated.

    Args:
        budgets: Any number, each of its own resource.
        ties: Groups of layer names that must share a precision.
        fixed: Layers whose precision is given.
        candidates: Layers whose precisions are restricted; others may take all.

    Raises:
        InputError: If a resource has two budgets, or tables have different layers or precisions.
    """

    budgets: tuple[Budget, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, Precision] = field(default_factory=dict)
    candidates: Mapping[str, Sequence[Precision]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Limits are changed and reported by resource; of two budgets one would be overlooked.
        names = [budget.resource for budget in self.budgets]
        if len(set(names)) != len(names):
            raise InputError(f"a resource has two budgets: {names}")
        # Solvers index all tables by one column number, so it has to mean one precision everywhere.
        for table in self.tables[1:]:
            first = self.tables[0]
            if (table.layers, table.precisions) != (first.layers, first.precisions):
                raise InputError(
                    f"{table.name} has other layers or precisions than {first.name}: all tables of "
                    "one problem have the same"
                )

    @property
    def tables(self) -> tuple[CostTable, ...]:
        """``[L, B]`` each, of every step of every budget."""
        return tuple(table for budget in self.budgets for table in budget.tables)

    @property
    def named(self) -> frozenset[str]:
        """Layers that a tie, a given precision or candidates speak of."""
        tied = (name for tie in self.ties for name in tie)
        return frozenset((*tied, *self.fixed, *self.candidates))

    @property
    def choosable(self) -> dict[str, tuple[Precision, ...]]:
        """Precisions of the layers that may not take all: a given precision goes before."""
        given = {name: (only,) for name, only in self.fixed.items()}
        # The last entry of a merged dict wins: a layer in both has its given precision only.
        return {**{name: tuple(ps) for name, ps in self.candidates.items()}, **given}
