"""What the exact solvers share: from an answer for groups to a checked solution."""

from dataclasses import replace
from math import isfinite

from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers.additive.milp import Answer
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.proofs import checked


def solution_of(problem: Problem, answer: Answer, solver: str, seconds: float) -> Solution:
    """The solution with the problem's own arithmetic, checked against what is known.

    Raises:
        SolverError: If what was proved contradicts what was found, or is known.
    """
    if answer.columns is None:
        nothing = Solution(answer.status, None, float("nan"), answer.bound, solver, seconds)
        return checked(problem, nothing)
    columns = problem.grouped.expand(answer.columns)
    loss, bound = problem.loss_of(columns), answer.bound
    found = Solution(answer.status, columns, loss, bound, solver, seconds)
    checked(problem, found, columns)
    # Proved in scaled floating point, where its last digits are not ours: within rounding the two
    # are equal, and the loss is proved.
    return found if bound is None or bound <= loss else replace(found, bound=loss)


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
