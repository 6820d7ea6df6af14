"""What every layer loses and costs at an assignment, where rows are layers and where not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.hardware_profiles.part_costs import PART_RESOURCES
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.workflows.searched import Searched


@final
@dataclass(frozen=True, eq=False)
class Accounts:
    """The tables of a result over its problem's rows.

    Args:
        problem: That was solved.
        tables: ``[R, B]`` each: every resource that is a sum over rows.
        shown: Names of those that every layer's share is shown of.
    """

    problem: Problem
    tables: tuple[CostTable, ...]
    shown: tuple[str, ...]

    @classmethod
    def of(cls, result: Searched, axis: str) -> Self:
        """Of a result; ``axis`` is the resource of its frontier."""
        is_divided = result.problem.parts is not None
        names = (x.name for x in result.tables if not is_divided or x.name in PART_RESOURCES)
        tables = tuple(map(result.cost_table, names))
        known = [table.name for table in tables]
        wanted = dict.fromkeys((*(x.name for x in result.shown_tables), axis))
        return cls(result.problem, tables, tuple(name for name in wanted if name in known))

    @property
    def names(self) -> tuple[str, ...]:
        """``[L]`` names of the layers."""
        parts = self.problem.parts
        return self.problem.loss.layers if parts is None else parts.layers

    @cached_property
    def shown_tables(self) -> tuple[CostTable, ...]:
        """``[R, B]`` each, of what is shown by layer."""
        known = {table.name: table for table in self.tables}
        return tuple(known[name] for name in self.shown)

    def by_layer(self, table: CostTable, columns: Columns) -> Array:
        """``[L]`` what layers have of a table at an assignment ``columns [R]``."""
        cells: Array = table.values[np.arange(len(columns)), columns]
        parts = self.problem.parts
        return cells if parts is None else parts.by_layer(cells)

    @cached_property
    def sensitivity(self) -> Array:
        """``[L, B]`` predicted loss of every layer at every candidate."""
        values, parts = self.problem.loss.values, self.problem.parts
        if parts is None:
            return values
        return np.stack([parts.by_layer(column) for column in values.T], axis=1)

    @cached_property
    def allowed(self) -> Array:
        """``[L, B]`` 1 where a layer may take a candidate, ties regarded."""
        grouped = self.problem.grouped
        rows = np.zeros(self.problem.loss.values.shape)
        for members, allowed in zip(grouped.members, grouped.allowed, strict=True):
            rows[list(members)] = allowed
        parts = self.problem.parts
        return rows if parts is None else rows[parts.starts.clip(max=len(rows) - 1)]

    def costs(self, columns: Columns) -> dict[str, float | None]:
        """Every resource of an assignment; ``None`` where it cannot run."""
        return {name: None if isnan(x) else x for name, x in self._costs(columns)}

    def _costs(self, columns: Columns) -> Iterator[tuple[str, float]]:
        for table in self.tables:
            yield table.name, table.total(columns)
        for budget in self.problem.budgets:
            # A maximum over steps has no table by layers.
            if budget.sum_table is None:
                yield budget.resource, budget.used(columns)

    @cached_property
    def units(self) -> Mapping[str, str]:
        """Resource to unit, in the order in which they are shown."""
        tables = {table.name: table.unit for table in self.tables}
        limited = {budget.resource: budget.unit for budget in self.problem.budgets}
        first = {name: tables[name] for name in self.shown}
        return {**first, **limited, **tables}
