"""How one search is done: estimator, solver, objective, refinement, checked against each other."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self, final

from torch import Tensor

from mpq._support.bounds import check_whole
from mpq._support.events import tell
from mpq._support.workers import TaskWorkers
from mpq.callbacks.results import Solved
from mpq.errors import InputError
from mpq.network.metrics import METRICS
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.fingerprint import checksum
from mpq.report.measurement import Measurement
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.solvers import SOLVERS, Solver
from mpq.solvers._base import Losses, MeasuredLosses
from mpq.solvers.queries.solve import solve
from mpq.workflows.losses_by_workers import LossesByWorkers
from mpq.workflows.minimize import Accepts, criterion, keeps, minimize
from mpq.workflows.objective import Objective
from mpq.workflows.points import hurried
from mpq.workflows.refine import Refinement, refinable_estimator
from mpq.workflows.refine import refine as refine_solution
from mpq.workflows.score import Judge
from mpq.workflows.setup import Prepared


@final
@dataclass(frozen=True, eq=False)
class Method:
    """Estimator and solver of one search, and what is asked of them.

    Args:
        estimator: Estimates the loss of every layer at every candidate.
        solver: Solves the problem; one that measures is bound to the network first.
        objective: The resource to minimise, or ``None``.
        rounds: At most so many rounds of refinement; 0: none.
        safeguard: Whether another answer may take the place of the solver's, see ``mpq.search``.

    Raises:
        InputError: If they do not go together.
    """

    estimator: SensitivityEstimator
    solver: Solver
    objective: Objective | None = None
    rounds: int = 0
    safeguard: bool = True

    @classmethod
    def of(
        cls,
        sensitivity: str | SensitivityEstimator,
        solver: str | Solver,
        seed: int,
        objective: Objective | None = None,
        rounds: int = 0,
    ) -> Self:
        """Builds what is given by name."""
        estimator = (
            ESTIMATORS.build(sensitivity, seed) if isinstance(sensitivity, str) else sensitivity
        )
        built = SOLVERS.build(solver, seed) if isinstance(solver, str) else solver
        return cls(estimator, built, objective, rounds)

    def __post_init__(self) -> None:
        check_whole("refine", self.rounds)
        # Refused here, before a network is traced: an estimate can take hours.
        self.solver.check()
        is_measured = self.solver.is_measuring
        if self.objective is not None and is_measured:
            raise InputError(
                "minimize needs a predicted loss; is_measured=true searches without one"
            )
        if self.objective is not None and self.rounds:
            raise InputError("refine lowers the loss at given limits; it does not go with minimize")
        if self.rounds:
            # Asked for its refusals only; the rounds come later.
            refinable_estimator(self.estimator, self.rounds)
            if is_measured:
                raise InputError(
                    "refine needs a predicted loss; is_measured=true searches without one"
                )

    def minimized(self, prepared: Prepared) -> CostTable | None:
        """``[L, B]`` of the objective's resource."""
        if self.objective is None:
            return None
        return prepared.pricing.table(self.objective.resource, prepared.candidates)

    def measuring(self, prepared: Prepared, workers: TaskWorkers | None) -> "Method":
        """The method with a solver that measures, if it is one that can.

        Args:
            prepared: Whose calibration examples it measures on.
            workers: Other processes that measure; ``None``: this one.
        """
        if not self.solver.is_measuring:
            return self
        # Not the held-out examples: what is optimised on them can no longer be measured on them.
        evaluator, candidates = prepared.on_calibration, prepared.candidates
        if workers is None:
            losses: Losses = evaluator.losses_of(candidates)
        else:
            losses = LossesByWorkers(workers, evaluator, candidates)
        # What a network draws for some examples depends on all before these.
        can_share = prepared.task.allow_randomness is None
        on_share = partial(evaluator.losses_on_share, candidates) if can_share else None
        told = MeasuredLosses(losses, partial(_depends, prepared), on_share)
        return replace(self, solver=self.solver.bind(told))

    def with_own_loss(self, solution: Solution, prepared: Prepared) -> Solution:
        """A solution that another one was replaced by, with the loss that the solver makes small.

        Where the solver measures, that is no predicted loss: it is measured here, if it was not.
        """
        if not self.solver.is_measuring:
            return solution
        assert solution.columns is not None
        losses = prepared.on_calibration.losses_of(prepared.candidates)
        return replace(solution, loss=float(losses(solution.columns[None])[0]))

    def solve(
        self, problem: Problem, table: CostTable | None, prepared: Prepared
    ) -> tuple[Problem, Solution]:
        """The problem that was solved in the end, and its solution."""
        if self.objective is None or table is None:
            found = problem, solve(self.solver, problem)
        else:
            # What may be lost is promised for examples that no estimate has seen.
            solver = hurried(self.solver)
            found = minimize(
                self.objective, problem, table, solver, prepared.on_held_out, self.safeguard
            )
        tell(Solved.of(found[1]))
        return found

    def accepts(self, problem: Problem, prepared: Prepared) -> Accepts:
        """Whether a choice ``[L]`` within the budgets keeps what the objective says of the loss."""
        if self.objective is None:
            return lambda _: True
        return criterion(self.objective, problem, prepared.on_held_out)

    def keeps(self, measured: Measurement, original: Measurement, judge: Judge | None) -> bool:
        """Whether what is measured of an answer keeps what the objective says of that."""
        return self.objective is None or keeps(self.objective, measured, original, judge)

    def refined(
        self, problem: Problem, solution: Solution, prepared: Prepared
    ) -> tuple[Solution, tuple[Refinement, ...]]:
        """The solution after the rounds of refinement, and what each of them gave."""
        if not self.rounds:
            return solution, ()
        return refine_solution(
            self.estimator, self.solver, problem, solution,
            prepared.on_calibration, prepared.calibration, self.rounds,
        )  # fmt: skip


def _depends(prepared: Prepared) -> dict[str, str]:
    """What measured losses depend on, beside the problem: the same on every machine."""
    task, data = prepared.task, prepared.calibration.uncut
    score = task.own_score
    held = (x for batch in data for x in (*batch.tensors, batch.targets) if isinstance(x, Tensor))
    return {
        "metric": METRICS.spell(prepared.network.metric),
        "score": "" if score is None else score.drop_key,
        "examples": checksum(held),
        "rounding": task.rounding,
        "ranges": repr(task.ranges),
        "transforms": ",".join(task.transforms),
        "activations": task.activations,
        "target": "" if task.target is None else task.target.name,
    }
