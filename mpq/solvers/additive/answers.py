"""What the exact solvers share: from an answer for groups to a checked solution."""

from math import isfinite

from mpq.errors import InputError, SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.tolerances import PROVED_BOUND
from mpq.solvers.additive.milp import Answer
from mpq.solvers.additive.presolve import Reduced


def solution_of(problem: Problem, answer: Answer, solver: str, seconds: float) -> Solution:
    """The solution with the problem's own arithmetic.

    Raises:
        SolverError: If what was proved contradicts what was found.
    """
    if answer.columns is None:
        return Solution(answer.status, None, float("nan"), answer.bound, solver, seconds)
    columns = problem.grouped.expand(answer.columns)
    loss, bound = problem.loss_of(columns), answer.bound
    if bound is not None and bound > loss:
        # Proved in scaled floating point, where its last digits are not ours.
        # Relative to all numbers and not to the loss, which may be 0 or cancel to nearly 0.
        if bound > loss + PROVED_BOUND * problem.loss.magnitude:
            raise SolverError(f"{solver} proved {bound}, above the loss {loss} that it found")
        # Within rounding the two are equal: the loss is proved.
        bound = loss
    return Solution(answer.status, columns, loss, bound, solver, seconds)


def require_one_budget(reduced: Reduced, solver: str) -> None:
    """Refuses several budgets; those that every choice meets do not count.

    Raises:
        InputError: If there are several.
    """
    if len(reduced.excess) > 1:
        raise InputError(
            f"{solver} takes one budget, and {len(reduced.excess)} can bind here: use the solver "
            "'lagrangian', which takes any number"
        )


def require_additive(problem: Problem, solver: str) -> None:
    """Refuses interactions.

    Raises:
        InputError: If the problem has them.
    """
    if problem.interactions is not None:
        raise InputError(
            f"{solver} minimises a sum over layers; this problem has interactions: use the solver "
            "'branch-and-bound' or 'local-search', or solve without them (`mpq solve --additive`, "
            "problem.additive())"
        )


def require_no_pairs(problem: Problem, solver: str) -> None:
    """Refuses costs of pairs of layers; those of tied or fixed layers do not count.

    Raises:
        InputError: If the problem has them.
    """
    if len(problem.grouped.pairwise):
        tables = (problem.loss, *problem.constraints.tables)
        names = [table.name for table in tables if table.pairs]
        raise InputError(
            f"{solver} adds up what single layers cost; {' and '.join(names)} also has costs of "
            "pairs of layers: use the solver 'ilp', with interactions 'branch-and-bound', "
            "'outer-approximation' or 'local-search', or 'auto', which picks one"
        )


def check_effort(solver: str, gap: float, time_limit_s: float | None) -> None:
    """Refuses a gap or a time limit that makes no sense.

    Raises:
        InputError: If the gap is not from 0 to 1, or the time limit is no positive number.
    """
    if not 0 <= gap < 1:
        raise InputError(f"{solver}: gap is a share, at least 0 and below 1; got {gap}")
    if time_limit_s is not None and not (isfinite(time_limit_s) and time_limit_s > 0):
        raise InputError(
            f"{solver}: time_limit_s is a positive number of seconds; got {time_limit_s}"
        )
