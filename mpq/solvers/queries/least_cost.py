"""The other way round: least cost in a resource, with a limit on what is lost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, final

from mpq._support.arrays import Columns
from mpq.errors import InfeasibleError, SolverError
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import EQUAL_SUMS, is_within
from mpq.solvers import Solver
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.queries.ask import ask
from mpq.solvers.queries.frontier import solve_frontier

MAX_HALVINGS: Final = 20
"""Each is a solution; 20 leave a millionth of the interval between the cheapest and the best."""


@final
@dataclass(frozen=True, eq=False)
class LeastCost:
    """The cheapest assignment whose loss is acceptable.

    Args:
        problem: With the cost that was found as one more budget.
        solution: Solution of that problem. It is called optimal where its cost is proved to be the
            least, and its loss to be the least at that cost; without a proof it has no bound.
        cost: What the assignment uses of the resource, in its unit: at most the budget.
        bound: No acceptable assignment uses less, as far as is proved; ``None``: nothing is.
        num_tried: Assignments that were solved for, or measured.
    """

    problem: Problem
    solution: Solution
    cost: float
    bound: float | None
    num_tried: int


def least_cost(problem: Problem, table: CostTable, solver: Solver, max_loss: float) -> LeastCost:
    """The least cost in a resource at which the predicted loss is within a limit.

    Exact where the loss is additive: cost and loss change places. With interactions the cost's
    limit is bisected, between what the cheapest assignment uses and what the best one does; nothing
    is then proved.

    Args:
        problem: Its budgets hold; one on the same resource too.
        table: ``[L, B]`` of the resource.
        solver: Finds the least loss for a cost.
        max_loss: In the loss table's unit.

    Raises:
        InfeasibleError: If no assignment loses so little: what the least loss is.
        SolverError: If the solver finds nothing.
    """
    if problem.interactions is not None:
        return _bisected(problem, table, solver, max_loss)
    swapped = problem.least(table, max_loss)
    cheapest = additive_solver(swapped).solve(swapped)
    if cheapest.columns is None:
        raise _out_of_reach(problem, table, solver, max_loss)
    limited = problem.limited(table, table.total(cheapest.columns))
    found = ask(solver, limited)
    if found.columns is None or not is_within(found.loss, max_loss):
        # A solver that is not exact may miss what is known already.
        loss = problem.loss_of(cheapest.columns)
        found = replace(found, status=Status.FEASIBLE, columns=cheapest.columns, loss=loss)
    assert found.columns is not None
    cost, bound = table.total(found.columns), cheapest.bound
    is_least = bound is not None and is_within(cost, bound)
    return LeastCost(limited, found if is_least else _unproved(found), cost, bound, 1)


def least_cost_measured(
    problem: Problem,
    table: CostTable,
    solver: Solver,
    is_acceptable: Callable[[Columns], bool],
    num_points: int,
) -> LeastCost:
    """The least cost at which a measured criterion still holds: bisection over the frontier.

    As Schaefer et al. (2023, arXiv:2306.04879) bisect a list of layers until the accuracy is
    acceptable; here every step is the proved best assignment of its cost, but for a solver that
    has a list of its own (``Solver.path``). Bisection takes for
    granted that what costs more is no worse; what is returned was measured and is acceptable.

    Args:
        problem: Its other budgets hold.
        table: ``[L, B]`` of the resource.
        solver: Solves for the frontier's points.
        is_acceptable: Measures a choice ``[L]``; called about ``log2(num_points)`` times.
        num_points: Points of the frontier that are bisected over.

    Raises:
        InfeasibleError: If the assignment that has the least loss is not acceptable, or a solver's
            list has none within the budgets.
    """
    assignments, statuses = _listed(problem, table, solver, num_points)
    low, high, tried = 0, len(assignments) - 1, 1
    # Bisection never looks at its upper end, which has to be known to be acceptable.
    if not is_acceptable(assignments[high]):
        raise InfeasibleError(
            "not even the assignment of least predicted loss is acceptable "
            f"({problem.loss_of(assignments[high]):.4g} {problem.loss.unit}); allow more precise "
            "candidates, or a larger drop"
        )
    while low < high:
        middle = (low + high) // 2
        tried += 1
        if is_acceptable(assignments[middle]):
            high = middle
        else:
            low = middle + 1
    columns = assignments[high]
    cost, loss = table.total(columns), problem.loss_of(columns)
    found = Solution(statuses[high], columns, loss, None, f"{solver.name}, bisected", 0.0)
    return LeastCost(problem.limited(table, cost), _unproved(found), cost, None, tried)


def _listed(
    problem: Problem, table: CostTable, solver: Solver, num_points: int
) -> tuple[list[Columns], list[Status]]:
    """What is bisected over, from the least cost on."""
    path = solver.path(problem)
    if path is None:
        return solve_frontier(problem, table, solver, num_points)
    if not path:
        raise InfeasibleError(f"no step that {solver.name} goes is within the budgets")
    return list(reversed(path)), [Status.FEASIBLE] * len(path)


def _bisected(problem: Problem, table: CostTable, solver: Solver, max_loss: float) -> LeastCost:
    best = ask(solver, problem.available(table))
    if best.columns is None or not is_within(best.loss, max_loss):
        raise _out_of_reach(problem, table, solver, max_loss)
    # A cost has no interactions, so that its least is found exactly.
    swapped = problem.cheapest(table)
    cheapest = additive_solver(swapped).solve(swapped).columns
    if cheapest is None:
        raise SolverError(f"{solver.name} found what the exact solver calls infeasible")
    low, tried = table.total(cheapest), 1
    high = table.total(best.columns)
    for _ in range(MAX_HALVINGS):
        if high - low <= EQUAL_SUMS * abs(high):
            break
        middle = 0.5 * (low + high)
        found = ask(solver, problem.limited(table, middle))
        tried += 1
        if found.columns is not None and is_within(found.loss, max_loss):
            # What was found may use less than it was allowed: the interval shrinks by that, too.
            best, high = found, table.total(found.columns)
        else:
            low = middle
    limited = problem.limited(table, high)
    return LeastCost(limited, _unproved(best), high, None, tried)


def _unproved(found: Solution) -> Solution:
    # That its loss is the least at its own cost says nothing of cheaper ones, which were asked for.
    status = Status.FEASIBLE if found.status is Status.OPTIMAL else found.status
    return replace(found, status=status, bound=None)


def _out_of_reach(
    problem: Problem, table: CostTable, solver: Solver, max_loss: float
) -> InfeasibleError | SolverError:
    best = ask(solver, problem.available(table))
    unit = problem.loss.unit
    if best.status is Status.INFEASIBLE:
        return InfeasibleError(f"no assignment meets the budgets: {best.reasons}")
    if best.columns is None:
        return SolverError(best.failure)
    return InfeasibleError(
        f"no assignment within the budgets loses at most {max_loss:.6g} {unit}: the least that was "
        f"found is {best.loss:.6g} {unit}, {best.loss - max_loss:.6g} {unit} too much"
    )
