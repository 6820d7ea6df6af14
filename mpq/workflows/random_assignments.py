"""Random and structured assignments near a budget: what predictions are compared on."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Columns
from mpq.errors import InputError
from mpq.problem.problem import Problem

_MAX_STEPS = 10_000
"""Repairs of one draw before a limit is called out of reach."""

Shape = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
SHAPES: Final[Mapping[str, Shape]] = {
    "rising": lambda place: place,
    "falling": lambda place: 1 - place,
    "ends": lambda place: np.abs(2 * place - 1),
    "middle": lambda place: 1 - np.abs(2 * place - 1),
    "alternating": lambda place: (np.arange(len(place)) % 2).astype(np.float64),
    "level": lambda place: np.full(len(place), 0.5),
}
"""How precise groups are, from 0 to 1, by their place in the network, from 0 to 1."""


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
    orders = _orders(problem)
    found = []
    for _ in range(count):
        ranks = np.array([rng.integers(len(order)) for order in orders])
        columns = _repaired(problem, orders, near, rng, ranks)
        if columns is None:
            name, limit = problem.budgets[0].resource, problem.budgets[0].limit
            raise InputError(
                f"found no random assignment that uses {near:.0%} to 100 % of {name} = {limit:.6g} "
                f"within {_MAX_STEPS} steps; choose a limit between those of uniform precisions"
            )
        found.append(columns)
    return found


def structured_assignments(problem: Problem, seed: int, near: float = 0.97) -> dict[str, Columns]:
    """Name of a shape (``SHAPES``) to an assignment ``[L]`` that has it, and keeps the budgets.

    What rules of thumb and estimators choose is no random assignment: bits rise or fall with
    depth, or are most at the ends. Each is repaired as random ones are; shapes that are not
    brought near the first budget so, and those that come to the same, are left out.
    """
    orders = _orders(problem)
    place = np.linspace(0, 1, len(orders))
    top = np.array([len(order) - 1 for order in orders])
    found: dict[str, Columns] = {}
    for name, shape in SHAPES.items():
        ranks = np.rint(shape(place) * top).astype(np.intp)
        columns = _repaired(problem, orders, near, np.random.default_rng(seed), ranks)
        if columns is not None and not any((columns == x).all() for x in found.values()):
            found[name] = columns
    return found


def _orders(problem: Problem) -> list[list[int]]:
    """For every group of tied layers the columns that it may take, the cheapest first."""
    grouped = problem.grouped
    # Rows come in the budgets' order, as many as each has tables.
    # Of a maximum over steps the sum: it is only needed to tell cheaper from more expensive.
    costs_of_first = grouped.costs[: len(problem.budgets[0].tables)].sum(axis=0)
    # By cost, since the columns come in the order in which the user named the candidates.
    return [
        [column for column in np.argsort(costs).tolist() if row[column]]
        for costs, row in zip(costs_of_first, grouped.allowed, strict=True)
    ]


def _repaired(
    problem: Problem,
    orders: list[list[int]],
    near: float,
    rng: np.random.Generator,
    ranks: Columns,
) -> Columns | None:
    grouped, budget = problem.grouped, problem.budgets[0]
    # Of what lies besides the layers nothing can be chosen: most of a limit may be that.
    table = budget.sum_table
    constant = 0.0 if table is None else table.constant
    floor = constant + near * (budget.limit - constant)
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
