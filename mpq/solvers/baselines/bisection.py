"""A baseline: layers in the order of their sensitivity, and a bisection for how many to lower."""

import time
from dataclasses import dataclass, replace
from math import nan
from typing import ClassVar, final

import numpy as np

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import require_additive, require_no_pairs
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines._base import solved_by
from mpq.solvers.baselines.tensor_path import TensorPath


@final
@dataclass(frozen=True)
class Bisection(Solver):
    """Lowers the least sensitive layers first, as many as the budgets need.

    All layers begin at their most expensive precision. As long as lowering all layers to the next
    cheaper one does not suffice, all are lowered; then the smallest number of the least sensitive
    layers that suffices is found by bisection: the search of Schaefer et al. (2023,
    arXiv:2306.04879), which orders layers by an augmented Hessian. Departs from it in that the
    table orders them, by what their cheapest precision loses above the best, and in that the
    budgets end it; ``mpq search --max-accuracy-drop`` bisects on a measured accuracy, as they do.
    The order is the same for all budgets, whatever a layer costs: hence a baseline.

    With ``tensors=true`` weights and inputs are lowered apart, as they do: an order of ``2L``
    tensors, by what each loses at its fewest bits (``TensorPath``). Then a measured criterion is
    bisected over the very steps of that order.

    Args:
        tensors: Whether weights and inputs of a layer are lowered apart.
    """

    name: ClassVar[str] = "bisection"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "baseline: least sensitive layers first (Augmenting Hessians)"

    tensors: bool = False

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; several budgets may leave it without an answer.

        Raises:
            InputError: If the problem has interactions or costs of pairs of layers, or tensors are
                lowered apart and a layer may not take every pair of their formats.
        """
        if not self.tensors:
            return solved_by(_bisected, problem, self.name)
        start = time.perf_counter()
        path = self.path(problem)
        exact = solve_additive(problem)
        if exact.columns is None:
            return replace(exact, solver=self.name)
        seconds = time.perf_counter() - start
        if not path:
            why = "no step of the order of tensors is within the budgets"
            return Solution(Status.UNKNOWN, None, nan, exact.bound, self.name, seconds, why=why)
        loss = problem.loss_of(path[0])
        bound = None if exact.bound is None else min(exact.bound, loss)
        is_best = exact.status is Status.OPTIMAL and loss <= exact.loss
        status = Status.OPTIMAL if is_best else Status.FEASIBLE
        return Solution(status, path[0], loss, bound, self.name, seconds)

    def path(self, problem: Problem) -> tuple[Columns, ...] | None:
        """See ``Solver.path``: the steps of the order of tensors.

        Raises:
            InputError: As ``solve``.
        """
        if not self.tensors:
            return None
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        steps = TensorPath.of(problem).layers(problem.grouped)
        return tuple(step for step in steps if problem.is_feasible(step))


def _bisected(reduced: Reduced) -> Columns:
    cost = np.where(reduced.usable, reduced.excess.sum(axis=0), np.inf)
    num_usable = reduced.usable.sum(axis=1)
    by_cost = np.argsort(cost, axis=1, kind="stable")  # [G, B], usable cells first
    rows = np.arange(len(cost))
    least_sensitive = np.argsort(reduced.rise[rows, by_cost[:, 0]], kind="stable")

    def at_level(level: int) -> Columns:
        return np.asarray(by_cost[rows, np.maximum(num_usable - 1 - level, 0)])

    levels = range(cost.shape[1])
    # With several budgets no level may hold; `solved_by` then finds the last one to break them.
    level = next((n for n in levels if (reduced.used(at_level(n)) <= 1).all()), levels[-1])
    before, after = at_level(max(level - 1, 0)), at_level(level)

    def lowered(count: int) -> Columns:
        columns = before.copy()
        columns[least_sensitive[:count]] = after[least_sensitive[:count]]
        return columns

    # Lowering one layer more never raises the use of a single budget, so that halving is safe. Of
    # several it may raise one: then the count is not the smallest, or `solved_by` refuses it.
    few, many = 0, len(rows)
    while few < many:
        middle = (few + many) // 2
        if (reduced.used(lowered(middle)) <= 1).all():
            many = middle
        else:
            few = middle + 1
    return lowered(many)
