"""Solving again from where the solver got to: re-linearised estimates."""

from dataclasses import dataclass, replace
from functools import partial
from typing import final

from mpq._support.progress import track
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.sensitivity import Estimation, RefinableEstimator, SensitivityEstimator
from mpq.sensitivity.in_memory import in_memory
from mpq.solvers import Solver
from mpq.workflows.evaluator import Evaluator


@final
@dataclass(frozen=True)
class Refinement:
    """One round.

    Args:
        predicted_loss: The new assignment's, by the estimate at the one before.
        measured_loss: Divergence of that assignment on the calibration examples, in the metric's
            unit.
        is_kept: Whether that was less than before.
    """

    predicted_loss: float
    measured_loss: float
    is_kept: bool


def refine(
    estimator: SensitivityEstimator,
    solver: Solver,
    problem: Problem,
    solution: Solution,
    evaluator: Evaluator,
    calibration: Calibration,
    rounds: int,
) -> tuple[Solution, tuple[Refinement, ...]]:
    """Estimates at the incumbent and solves, while the measured loss falls.

    Beyond second order, at very few bits, the network that matters is the quantized one. The
    problem stays as it is: the refined solution has its loss and its bound.

    Args:
        estimator: One that can estimate at an incumbent.
        solver: Solver of the problem, and of every round's.
        problem: The problem as it was solved, with the first estimate's loss.
        solution: Its solution, with an assignment: the first incumbent.
        evaluator: Measures assignments on the calibration examples.
        calibration: Examples that the estimator sees.
        rounds: At most so many rounds, at least 1.

    Raises:
        InputError: If the estimator cannot estimate at an incumbent.
    """
    refinable = refinable_estimator(estimator, rounds)
    on = Estimation(evaluator.network, calibration, evaluator.quantizer, problem.loss.precisions)
    kept, rows = solution, list[Refinement]()
    # Rounds are compared by what is measured: their predictions are made at different networks.
    least = evaluator.measure(solution.precisions(problem)).divergence
    for _ in track(range(rounds), "refinements"):
        estimate = partial(refinable.estimate_at, incumbent=kept.precisions(problem))
        found = in_memory(estimator.name, on, estimate)
        # A solver that was asked the additive problem is asked additive ones in the rounds too.
        interactions = found.interactions if problem.interactions is not None else None
        near = replace(problem, loss=found.table, interactions=interactions)
        new = solver.solve(near)
        # Out of time: what is kept is still an answer.
        if new.columns is None:
            break
        measured = evaluator.measure(new.precisions(near)).divergence
        # A round that is dropped is reported as well: it says why there is no further one.
        rows.append(Refinement(new.loss, measured, measured < least))
        if measured >= least:
            break  # near a minimum rounds go in circles: the best one so far is kept
        least, kept = measured, _under(problem, solution, new)
    return kept, tuple(rows)


def _under(problem: Problem, first: Solution, refined: Solution) -> Solution:
    """A solution of a refined problem as one of the problem itself."""
    assert refined.columns is not None
    loss = problem.loss_of(refined.columns)
    # The problem's bound holds for each of its assignments; the minimum is against rounding.
    bound = None if first.bound is None else min(first.bound, loss)
    solver = f"{refined.solver}, refined"
    return replace(
        first,
        # Even if the first one was optimal: by the problem's own loss another one may be better.
        status=Status.FEASIBLE,
        columns=refined.columns,
        loss=loss,
        bound=bound,
        solver=solver,
    )


def refinable_estimator(estimator: SensitivityEstimator, rounds: int) -> RefinableEstimator:
    """The estimator, if it can look again so often.

    Raises:
        InputError: If it cannot estimate at an incumbent, or the number is below 1.
    """
    if rounds < 1:
        raise InputError(f"refine is a number of rounds, at least 0; got {rounds}")
    if not isinstance(estimator, RefinableEstimator):
        raise InputError(f"{estimator.name} cannot be refined; the estimator 'sketch' can")
    return estimator
