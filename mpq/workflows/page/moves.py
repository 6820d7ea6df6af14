"""What one layer more, or one less, would cost: the answer with one layer changed."""

from collections.abc import Iterator, Sequence
from math import fsum
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.tolerances import is_within
from mpq.report.page.layers import Move
from mpq.workflows.page.accounts import Accounts

_SHOWN: Final = 8
"""Moves each way."""
_MOST_ROWS: Final = 3000
"""Rows whose moves are looked at: each takes a sum over all of them."""


def why_no_moves(accounts: Accounts, axis: str) -> str:
    """Why there are none, in a sentence."""
    if why := _why_not_tried(accounts):
        return why
    name = axis.replace("_", " ")
    if axis not in accounts.shown:
        return f"The {name} of a network is no sum over its layers."
    return f"No single layer can move to a precision that trades loss for {name}."


def _why_not_tried(accounts: Accounts) -> str:
    """Why no moves are looked at, whatever they are for; empty: they are."""
    if accounts.problem.parts is not None:
        return "Bits differ inside layers, so that no layer moves as a whole."
    if len(accounts.names) > _MOST_ROWS:
        return f"There are {len(accounts.names):,} layers: moves of them are too many to try."
    return ""


def single_moves(accounts: Accounts, columns: Columns) -> tuple[Move, ...]:
    """All of them; none where rows are parts of layers, or very many.

    Args:
        accounts: Of the answer's problem.
        columns: ``[L]`` the answer.
    """
    return () if _why_not_tried(accounts) else tuple(_moves(accounts, columns))


def buying(moves: Sequence[Move], at: int) -> list[Move]:
    """Those that lose less for more of a resource, the one that saves most for it first.

    Args:
        moves: Of single layers.
        at: Place of the resource among those that are shown.
    """
    found = [move for move in moves if move.loss < 0 < move.costs[at]]
    return sorted(found, key=lambda move: move.loss / move.costs[at])


def best_moves(accounts: Accounts, moves: Sequence[Move], axis: str) -> tuple[Move, ...]:
    """Moves that lose less and take no more, that save most for their cost, that free most.

    By the frontier's resource; tied layers move together. The first are held back by other budgets,
    or by what is measured.
    """
    if axis not in accounts.shown:
        return ()
    at = accounts.shown.index(axis)
    free = [move for move in moves if move.loss < 0 and move.costs[at] <= 0]
    cheaper = [move for move in moves if move.loss > 0 > move.costs[at]]
    free.sort(key=lambda move: move.loss)
    cheaper.sort(key=lambda move: move.loss / -move.costs[at])
    return (*free[:_SHOWN], *buying(moves, at)[:_SHOWN], *cheaper[:_SHOWN])


def _moves(accounts: Accounts, columns: Columns) -> Iterator[Move]:
    problem, grouped = accounts.problem, accounts.problem.grouped
    rises = _Rises(problem, columns)
    spelled = list(map(str, problem.loss.precisions))
    used = [budget.used(columns) for budget in problem.budgets]
    for members, allowed in zip(grouped.members, grouped.allowed, strict=True):
        rows, now = np.array(members), int(columns[members[0]])
        for column in np.flatnonzero(allowed).tolist():
            if column == now:
                continue
            yield Move(
                ", ".join(problem.loss.layers[row] for row in members),
                spelled[now],
                spelled[column],
                rises.loss(rows, column),
                tuple(_rise(table, columns, rows, column) for table in accounts.shown_tables),
                all(
                    _is_met(budget, before, columns, rows, column)
                    for budget, before in zip(problem.budgets, used, strict=True)
                ),
            )


def _rise(table: CostTable, columns: Columns, rows: Columns, column: int) -> float:
    """What a resource rises by with some rows at another column."""
    if table.pairs:
        return table.total(_moved(columns, rows, column)) - table.total(columns)
    return fsum((table.values[rows, column] - table.values[rows, columns[rows]]).tolist())


def _is_met(budget: Budget, used: float, columns: Columns, rows: Columns, column: int) -> bool:
    table = budget.sum_table
    if table is None or table.pairs:
        return budget.is_met(_moved(columns, rows, column))
    # Of a sum the difference suffices, where a whole sum for every move would take long.
    return is_within(used + _rise(table, columns, rows, column), budget.limit)


def _moved(columns: Columns, rows: Columns, column: int) -> Columns:
    moved = columns.copy()
    moved[rows] = column
    return moved


class _Rises:
    """Losses of moves, each from the sums of the assignment that they start at."""

    def __init__(self, problem: Problem, columns: Columns) -> None:
        self._problem, self._columns = problem, columns
        self._sums: Array | None = None
        if problem.interactions is not None:
            rows = np.arange(len(columns))
            self._sums = problem.interactions.factor[:, rows, columns].sum(axis=1, dtype=np.float64)

    def loss(self, rows: Columns, column: int) -> float:
        """Rise of the loss with some rows at another column."""
        values, now = self._problem.loss.values, self._columns[rows]
        additive = float((values[rows, column] - values[rows, now]).sum())
        found = self._problem.interactions
        if found is None or self._sums is None:
            return additive
        change = (found.factor[:, rows, column] - found.factor[:, rows, now]).sum(
            axis=1, dtype=np.float64
        )  # [S]
        together = float((0.5 * change**2 + self._sums * change).mean())
        alone = float((found.alone[rows, column] - found.alone[rows, now]).sum())
        return additive + (1 - found.shrinkage) * (together - alone)
