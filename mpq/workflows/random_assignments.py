"""Random assignments near a budget: what predictions are compared on."""

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Columns
from mpq.errors import InputError
from mpq.problem.problem import Problem

_MAX_STEPS = 10_000
"""Repairs of one draw before a limit is called out of reach."""


def random_assignments(
    problem: Problem, count: int, seed: int, near: float = 0.97
) -> list[Columns]:
    """Random assignments that use nearly all of the first budget and keep the others.

    Each starts from precisions drawn evenly for every group of tied layers, and is repaired:
    random groups take their next cheaper or more expensive precision until it is met.

    Args:
        problem: With at least one budget.
        count: How many; each is drawn on its own, so that two can be equal.
        seed: Seed of the random numbers; the same one draws the same assignments.
        near: Least share of the first budget that is used, without what it takes besides layers.

    Returns:
        ``count`` times ``[L]``.

    Raises:
        InputError: If no such assignment is found.
    """
    rng = np.random.default_rng(seed)
    grouped = problem.grouped
    # Rows come in the budgets' order, as many as each has tables.
    # Of a maximum over steps the sum: it is only needed to tell cheaper from more expensive.
    costs_of_first = grouped.costs[: len(problem.budgets[0].tables)].sum(axis=0)
    # By cost, since the columns come in the order in which the user named the candidates.
    orders = [
        [column for column in np.argsort(costs).tolist() if row[column]]
        for costs, row in zip(costs_of_first, grouped.allowed, strict=True)
    ]
    found = []
    for _ in range(count):
        columns = _repaired(problem, orders, near, rng)
        if columns is None:
            name, limit = problem.budgets[0].resource, problem.budgets[0].limit
            raise InputError(
                f"found no random assignment that uses {near:.0%} to 100 % of {name} = {limit:.6g} "
                f"within {_MAX_STEPS} steps; choose a limit between those of uniform precisions"
            )
        found.append(columns)
    return found


def _repaired(
    problem: Problem, orders: list[list[int]], near: float, rng: np.random.Generator
) -> Columns | None:
    grouped, budget = problem.grouped, problem.budgets[0]
    # Of what lies besides the layers nothing can be chosen: most of a limit may be that.
    table = budget.sum_table
    constant = 0.0 if table is None else table.constant
    floor = constant + near * (budget.limit - constant)
    ranks = np.array([rng.integers(len(order)) for order in orders])
    for _ in range(_MAX_STEPS):
        columns = grouped.expand(_columns(orders, ranks))
        used = budget.used(columns)
        if problem.is_feasible(columns) and used >= floor:
            return columns
        # One group at a time leaves the others as they were drawn.
        group = int(rng.integers(len(orders)))
        # Down also where another budget is broken: what saves of the first mostly saves of all.
        step = 1 if used < floor else -1
        ranks[group] = np.clip(ranks[group] + step, 0, len(orders[group]) - 1)
    return None


def _columns(orders: list[list[int]], ranks: npt.NDArray[np.intp]) -> Columns:
    return np.array([order[rank] for order, rank in zip(orders, ranks, strict=True)], dtype=np.intp)
