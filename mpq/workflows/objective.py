"""What may be lost where a resource is to be as small as possible."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Self, final

from mpq.errors import InputError
from mpq.problem.arrays import Columns
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.precision import ORIGINAL
from mpq.solvers import Solver
from mpq.solvers.queries.least_cost import least_cost_measured
from mpq.solvers.queries.solve import cheapest
from mpq.workflows.evaluator import Evaluator

FRONTIER_POINTS = 64
"""Points of the frontier that a measured criterion is bisected over: six or seven measurements."""


@final
@dataclass(frozen=True)
class Objective:
    """A resource to minimise, and one criterion of what may be lost.

    Args:
        resource: Such as ``latency``.
        max_loss: Predicted, in the estimate's unit.
        max_measured_loss: On held-out examples, in the metric's unit.
        max_accuracy_drop: On held-out examples with targets: 0.01 is one point.

    Raises:
        InputError: If there is not exactly one criterion, or it is no number of at least 0.
    """

    resource: str
    max_loss: float | None = None
    max_measured_loss: float | None = None
    max_accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        given = [c for c in self._criteria if c is not None]
        if len(given) != 1 or not 0 <= given[0] < inf:
            raise InputError(
                "to minimize a resource, give one criterion of at least 0: max_loss (predicted), "
                f"max_measured_loss or max_accuracy_drop; got {given or 'none'}"
            )

    @property
    def _criteria(self) -> tuple[float | None, float | None, float | None]:
        return self.max_loss, self.max_measured_loss, self.max_accuracy_drop

    @classmethod
    def of(
        cls,
        minimize: str | None,
        max_loss: float | None,
        max_measured_loss: float | None,
        max_accuracy_drop: float | None,
    ) -> Self | None:
        """The demand, or ``None`` where nothing is to be minimised but the loss.

        Raises:
            InputError: If there is a criterion and no resource, or the criteria do not fit.
        """
        if minimize is not None:
            return cls(minimize, max_loss, max_measured_loss, max_accuracy_drop)
        if any(c is not None for c in (max_loss, max_measured_loss, max_accuracy_drop)):
            raise InputError("a limit on the loss needs minimize: the resource to be made small")
        return None

    def solve(
        self, problem: Problem, table: CostTable, solver: Solver, evaluator: Evaluator
    ) -> tuple[Problem, Solution]:
        """The problem with the least cost as one more budget, and its solution.

        Args:
            problem: With its loss.
            table: ``[L, B]`` of the resource.
            solver: Of the problem.
            evaluator: Held-out examples.

        Raises:
            InputError: If accuracy cannot be measured.
            InfeasibleError: If no assignment within the budgets is good enough.
            SolverError: If the solver finds nothing.
        """
        if self.max_loss is not None:
            return cheapest(problem, table, solver, self.max_loss)
        is_acceptable = self._criterion(problem, evaluator)
        found = least_cost_measured(problem, table, solver, is_acceptable, FRONTIER_POINTS)
        why = f"least {table.name}: {found.num_tried} points of the frontier were measured"
        return found.problem, replace(found.solution, why=why)

    def _criterion(self, problem: Problem, evaluator: Evaluator) -> Callable[[Columns], bool]:
        precisions, names = problem.loss.precisions, problem.loss.layers

        def measured(columns: Columns) -> tuple[float, float | None]:
            found = evaluator.measure(
                {n: precisions[column] for n, column in zip(names, columns.tolist(), strict=True)}
            )
            return found.divergence, found.accuracy

        if self.max_measured_loss is not None:
            limit = self.max_measured_loss
            return lambda columns: measured(columns)[0] <= limit
        original = evaluator.measure(evaluator.uniform(ORIGINAL)).accuracy
        if original is None or self.max_accuracy_drop is None:
            raise InputError("max_accuracy_drop needs held-out examples with targets")
        least = original - self.max_accuracy_drop
        return lambda columns: (measured(columns)[1] or 0.0) >= least
