"""Codes that fit data have two kinds of prices: unseen examples say whose answer is better."""

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.errors import SolverError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.report.safeguard import Excess, PriceCheck, Verdict
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.defaults import SOLVER
from mpq.workflows.never_worse import replaced
from mpq.workflows.setup import Prepared

BEYOND: Final = 0.5
"""Standard errors by which the other answer has to be better, beside being so on most examples."""


def better_priced(
    prepared: Prepared,
    problem: Problem,
    solution: Solution,
    by_channels: CostTable | None,
    accepts: Callable[[Columns], bool] = lambda _: True,
) -> tuple[Solution, PriceCheck | None]:
    """The solution, or the optimum by other prices, if that loses less on held-out examples.

    What errors of different channels do together on examples that codes were made to fit need not
    be what they do on others; without it prices are safe on some networks and wrong on others
    (docs/rounding.md). The other answer is taken where it is better in the mean and on most
    examples. Takes a forward pass over the held-out examples for either answer.

    Args:
        prepared: Measures on held-out examples.
        problem: The problem that was solved.
        solution: Its solution, with an assignment.
        by_channels: The other prices, see ``Sensitivity``; ``None``: there are none.
        accepts: Whether a choice ``[L]`` meets what else is asked than budgets, as an objective's
            limit on the loss.
    """
    if by_channels is None:
        return solution, None
    problem_by_channels = Problem(by_channels, problem.constraints)
    try:
        other = solve(SOLVERS.build(SOLVER, prepared.task.seed), problem_by_channels)
    except SolverError as error:  # there is an answer all the same
        warnings.warn(f"no answer by prices of channels to compare with: {error}", stacklevel=2)
        return solution, None
    first, columns = solution.columns, other.columns
    assert first is not None
    assert columns is not None
    if np.array_equal(first, columns) or not accepts(columns):
        return solution, None
    measured = [prepared.on_held_out.measure(problem.precisions_of(x)) for x in (first, columns)]
    check = _compared(*(x.by_example for x in measured))
    if not check.is_replaced:
        return solution, check
    return replaced(problem, solution, columns, "prices by channels"), check


def _compared(answer: Array, other: Array) -> PriceCheck:
    """From the divergences ``[N]`` of both on the same examples."""
    excess = Excess.of(answer, other)
    is_better = excess.beyond(BEYOND) is Verdict.WORSE and excess.is_on_most
    return PriceCheck(excess, is_better)
