"""What a solver claims, against an assignment that is known: the one place where that is looked at.

A bound above the loss of a known assignment, an optimum that loses more, and "infeasible" where
one is feasible are wrong, whoever proved them. HiGHS 1.16.0 did, where coefficients span decades.
"""

from math import fsum
from typing import Any

import numpy as np

from mpq._support.arrays import Columns
from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import LAST_DIGITS, LIMIT, PROVED_BOUND


def checked(problem: Problem, solution: Solution, *known: Columns) -> Solution:
    """The same solution.

    Args:
        problem: What was solved.
        solution: What is claimed of it.
        known: ``[L]`` assignments; the uniform precisions are looked at in any case.

    Raises:
        SolverError: If the solution contradicts an assignment that is known and feasible.
    """
    claim = solution.status, solution.columns, solution.bound
    if wrong := contradiction(problem, *claim, best_known(problem, *known)):
        raise SolverError(f"{solution.solver} is wrong, use another solver: {wrong}")
    return solution


def contradiction(
    problem: Problem,
    status: Status,
    columns: Columns | None,
    bound: float | None,
    known: Columns | None,
) -> str:
    """What is wrong with a claim, in words; empty if nothing is.

    Args:
        problem: What was solved.
        status: How the solver says that it ended.
        columns: ``[L]`` its answer, or ``None``.
        bound: What it says is the least loss, in the loss table's unit, or ``None``.
        known: ``[L]`` a feasible assignment, or ``None``.
    """
    if known is None:
        return ""
    if status is Status.INFEASIBLE:
        return "it calls the budgets impossible to meet, and an assignment is known that meets them"
    if bound is None and status is not Status.OPTIMAL:
        return ""  # nothing is claimed; what is measured is no loss of the table either
    loss = problem.loss_of(known)
    most = loss + rounding(problem, known)
    if bound is not None and bound > most:
        return f"it proved {bound:.10g}, and an assignment is known that loses {loss:.10g}"
    if status is Status.OPTIMAL and columns is not None and problem.loss_of(columns) > most:
        return (
            f"it calls a loss of {problem.loss_of(columns):.10g} the least, and an assignment is "
            f"known that loses {loss:.10g}"
        )
    return ""


def best_known(problem: Problem, *known: Columns) -> Columns | None:
    """``[L]`` of least loss among some assignments and the uniform precisions; all are checked.

    Layers that may not take a uniform precision take the first that they may.
    """
    found = [columns for columns in known if problem.is_feasible(columns)]
    found += _uniform(problem)
    return min(found, key=problem.loss_of, default=None)


def _uniform(problem: Problem) -> list[Columns]:
    grouped = problem.grouped
    rows, first = np.arange(len(grouped.loss)), grouped.allowed.argmax(axis=1)
    columns = np.where(grouped.allowed, np.arange(grouped.allowed.shape[1]), first[:, None])
    # As bytes: numpy's `unique` compares thousands of columns one by one.
    chosen = np.array([*{each.tobytes(): each for each in columns.T}.values()])  # [P, G]
    used = grouped.costs[:, rows, chosen].sum(axis=2).T + grouped.pairwise.cost(chosen)[:, 1:]
    sizes = np.abs(grouped.costs[:, rows, chosen]).sum(axis=2).T + np.abs(grouped.limits)
    # In doubt it stays: what is left is few, and asked exactly.
    near = (used <= grouped.limits + LIMIT * sizes + grouped.rounding).all(axis=1)
    losses = grouped.loss[rows, chosen].sum(axis=1) + grouped.pairwise.cost(chosen)[:, 0]
    found = []
    for one in chosen[near][np.argsort(losses[near], kind="stable")]:
        expanded = grouped.expand(one)
        if problem.is_feasible(expanded):
            found.append(expanded)
            # Of a sum over layers the first is the best; interactions may prefer another.
            if problem.interactions is None:
                break
    return found


def rounding(problem: Problem, columns: Columns) -> float:
    """What a proof about an assignment ``[L]`` may owe to arithmetic, in the loss table's unit.

    Relative to the numbers that make up its loss, and those that solvers subtract first: the least
    of every layer. Not to all of the table, where a single large cell that nobody would take hides
    any mistake.
    """
    table, rows = problem.loss, np.arange(len(columns))
    least = np.abs(np.where(problem.allowed, table.values, np.inf).min(axis=1))
    sizes: list[Any] = [abs(table.constant), *least, *np.abs(table.values[rows, columns])]
    pairs = fsum(float(np.abs(pair.values).max()) for pair in table.pairs)
    if problem.interactions is not None:
        sizes += np.abs(problem.interactions.alone[rows, columns]).tolist()
    if table.pairs:
        sizes.append(abs(table.total_between(columns)))
    return PROVED_BOUND * fsum(sizes) + LAST_DIGITS * pairs
