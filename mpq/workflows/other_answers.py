"""What the estimate says is best beside what else may be: unseen examples say which is better."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.events import warn
from mpq.errors import InfeasibleError, SolverError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.precision import Precision
from mpq.report.safeguard import (
    INTEGERS,
    OTHER_ANSWERS,
    PRICES,
    UNSEEN,
    AnswerCheck,
    Excess,
    Verdict,
)
from mpq.rounding import AutoRounding
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.defaults import SOLVER
from mpq.workflows.never_worse import replaced
from mpq.workflows.optimism import factors, is_too_low, raised
from mpq.workflows.rounded_weights import RoundedWeights
from mpq.workflows.setup import Prepared

BEYOND: Final = 0.5
"""Standard errors by which another answer has to be better, beside being so on most examples."""


def best_answer(
    prepared: Prepared,
    problem: Problem,
    solution: Solution,
    by_channels: CostTable | None,
    accepts: Callable[[Columns], bool] = lambda _: True,
) -> tuple[Solution, dict[str, AnswerCheck]]:
    """The solution, or another optimum that loses less on held-out examples; and what was found.

    An estimate errs, and three of its errors have a remedy that costs a solve and a forward pass
    over the held-out examples each. Codes that fit data have two kinds of prices: what errors of
    different channels do together on examples that codes were made to fit need not be what they do
    on others (docs/rounding.md). Where a layer has more inputs than few examples tell anything
    about, its codes seem to lose next to nothing, and it gets the fewest bits: prices times what
    unseen examples say (``mpq.workflows.optimism``) are asked as well. And where a layer was given
    floating point, a codebook or a branch, errors of another shape stand beside those of integers:
    the optimum of integers alone is asked, so that more candidates do no harm. Another answer is
    taken where it is better in the mean and on most examples.

    Args:
        prepared: Measures on held-out examples.
        problem: The problem that was solved.
        solution: Its solution, with an assignment.
        by_channels: The other prices, see ``Sensitivity``; ``None``: there are none.
        accepts: Whether a choice ``[L]`` meets what else is asked than budgets, as an objective's
            limit on the loss.
    """
    checks = dict[str, AnswerCheck]()
    for name, other in _others(problem, by_channels, prepared.rounded):
        assert solution.columns is not None
        if name == INTEGERS and _is_of_integers(problem, solution.columns):
            continue
        columns = _solved(prepared, name, other)
        if columns is None or np.array_equal(solution.columns, columns) or not accepts(columns):
            continue
        asked = (problem.precisions_of(x) for x in (solution.columns, columns))
        measured = [prepared.on_held_out.measure(precisions) for precisions in asked]
        checks[name] = _compared(*(x.by_example for x in measured))
        if checks[name].is_replaced:
            solution = replaced(problem, solution, columns, OTHER_ANSWERS[name])
    return solution, checks


def _others(
    problem: Problem, by_channels: CostTable | None, rounded: RoundedWeights
) -> Iterator[tuple[str, Problem]]:
    """Problems whose optima are asked about, each with what makes it another."""
    if by_channels is not None:
        yield PRICES, Problem(by_channels, problem.constraints)
    if is_too_low(rounded.optimism):
        yield UNSEEN, _for_unseen(problem, rounded)
    integers = np.array([_is_integer(found) for found in problem.loss.precisions])
    mask = problem.allowed.copy()
    for rows in map(list, problem.grouped.members):
        # Layers that may be no integer keep what they may be.
        if (mask[rows].all(axis=0) & integers).any():
            mask[rows] &= integers
    if not np.array_equal(mask, problem.allowed):
        yield INTEGERS, replace(problem, mask=mask)


def _for_unseen(problem: Problem, rounded: RoundedWeights) -> Problem:
    """With prices times each layer's factor.

    Without interactions: what errors of layers do together on examples that all were made to fit
    says as little.
    """
    loss = problem.loss
    values = raised(loss.values, factors(loss, rounded.optimism, rounded.unhelped))
    return replace(problem, loss=replace(loss, values=values), interactions=None)


def most_others(prepared: Prepared) -> int:
    """How many optima ``best_answer`` asks about at most, as plans count them."""
    rounding = prepared.task.weight_rounding
    # What unseen examples say of prices, the trial of ``auto`` alone tells.
    is_tried = isinstance(rounding, AutoRounding)
    return rounding.reads_inputs + is_tried + is_mixed(prepared.candidates)


def is_mixed(candidates: Sequence[Precision]) -> bool:
    """Whether an answer of integers alone may be another one."""
    return len(set(map(_is_integer, candidates))) > 1


def _is_integer(precision: Precision) -> bool:
    formats = precision.weight, precision.activation
    if precision.weight.branch is not None:
        return False
    return all(found.is_exact or not found.number.is_float for found in formats)


def _is_of_integers(problem: Problem, columns: Columns) -> bool:
    return all(map(_is_integer, problem.precisions_of(columns).values()))


def _solved(prepared: Prepared, name: str, problem: Problem) -> Columns | None:
    """The optimum; ``None``: there is none, or none was found, which is told."""
    try:
        return solve(SOLVERS.build(SOLVER, prepared.task.seed), problem).columns
    except InfeasibleError:  # by integers alone there need be no answer
        return None
    except SolverError as error:  # there is an answer all the same
        warn(f"no answer by {OTHER_ANSWERS[name]} to compare with: {error}", stacklevel=3)
        return None


def _compared(answer: Array, other: Array) -> AnswerCheck:
    """From the divergences ``[N]`` of both on the same examples."""
    excess = Excess.of(answer, other)
    return AnswerCheck(excess, is_for_other(excess))


def is_for_other(excess: Excess) -> bool:
    """Whether what an answer loses more than another one is enough for that to be taken."""
    return excess.beyond(BEYOND) is Verdict.WORSE and excess.is_on_most
