"""A limit on one resource, and what an assignment uses of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Self, final

from mpq._support.arrays import Columns
from mpq._support.json_arrays import number
from mpq.errors import InputError, LimitError
from mpq.problem.cost_table import CostTable
from mpq.problem.schema import check
from mpq.problem.tolerances import is_within

FILE_BYTES: Final = "file_bytes"
"""The resource that is a target's file: its limit is one that an export keeps, too."""


@final
@dataclass(frozen=True, eq=False)
class Budget:
    """One resource and how much of it an assignment may use.

    Most resources are one sum over layers (``Budget.of``). One that is a maximum over steps, as
    ``peak_ram`` is, has a table a step, named like the step; the largest total is what is used.

    Args:
        resource: Name that limits and reports know it by, such as ``latency``.
        tables: ``[L, B]`` cost in every step, all in one unit, of the same layers and precisions.
        limit: Largest use that is allowed, in the tables' unit.

    Raises:
        LimitError: If the limit is not a finite number.
        InputError: If there is no table, or the tables do not fit together.
    """

    resource: str
    tables: tuple[CostTable, ...]
    limit: float

    def __post_init__(self) -> None:
        if not isfinite(self.limit):
            raise LimitError(f"{self.resource}: the limit must be finite, got {self.limit}")
        if not self.tables:
            raise InputError(f"{self.resource}: a budget has at least one table; got none")
        # Layers and precisions are compared once for all budgets, in ``Constraints``.
        for table in self.tables[1:]:
            if table.unit != self.unit:
                raise InputError(
                    f"{self.resource}: step {table.name} is in {table.unit}, the first step in "
                    f"{self.unit}: a maximum needs one unit"
                )
        object.__setattr__(self, "limit", float(self.limit))  # as it is read from a file

    @classmethod
    def of(cls, table: CostTable, limit: float) -> Self:
        """The budget of a resource that is a sum over layers, called as its table is."""
        return cls(table.name, (table,), limit)

    @property
    def unit(self) -> str:
        """Unit of the limit and of all tables."""
        return self.tables[0].unit

    @property
    def sum_table(self) -> CostTable | None:
        """``[L, B]`` of a resource that is a sum over layers; ``None`` of a maximum over steps."""
        # A maximum over a single step is told from a sum by its table's name, which is the step's.
        (table, *steps) = self.tables
        return None if steps or table.name != self.resource else table

    def used(self, columns: Columns) -> float:
        """What an assignment uses, in the tables' unit; ``columns [L]`` is a column per layer."""
        return max(table.total(columns) for table in self.tables)

    def is_met(self, columns: Columns) -> bool:
        """Whether the assignment stays within the limit, up to ``LIMIT``."""
        return is_within(self.used(columns), self.limit)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        tables = [table.to_dict() for table in self.tables]
        return {"resource": self.resource, "limit": self.limit, "tables": tables}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing or of another kind.
        """
        check(data, "budget", "budget")
        tables = tuple(map(CostTable.from_dict, data["tables"]))
        return cls(data["resource"], tables, number(data["limit"], "not a budget: limit"))
