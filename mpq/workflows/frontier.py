"""The least loss for every amount of one resource."""

from collections.abc import Sequence

from mpq._support.bounds import check_whole
from mpq._support.events import Callback, listening
from mpq._support.phases import phase
from mpq.errors import InputError
from mpq.problem.limits import Limits, parse_limits
from mpq.report.frontier import Frontier
from mpq.sensitivity import SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.defaults import ESTIMATOR, NUM_POINTS, SOLVER
from mpq.workflows.forecast import FRONTIER, POINTS, Curve
from mpq.workflows.method import Method
from mpq.workflows.outcome import announced
from mpq.workflows.result import SearchResult
from mpq.workflows.search import searched
from mpq.workflows.task import Task, check_task


def frontier(
    task: Task,
    resource: str | None = None,
    limits: Limits = (),
    *,
    num_points: int = NUM_POINTS,
    measure: bool = False,
    hull: bool = False,
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    callbacks: Sequence[Callback] = (),
) -> Frontier:
    """Finds what every amount of a resource buys: the least predicted loss, limits held.

    Args:
        task: The network, its data, and what its layers may become; as in ``mpq.search``.
        resource: Any that is a sum over layers; default: that of the first such limit, or bytes of
            weights.
        limits: Budgets that every point meets, and that of the resource itself; as in
            ``mpq.search``. There may be none.
        num_points: How many amounts are solved for; equal answers are one point.
        measure: Whether every point is tried on the held-out examples.
        hull: Whether it is the complete lower convex hull of the additive frontier instead of
            evenly spaced amounts.
        sensitivity: A name of ``mpq.ESTIMATORS`` with options, or an estimator.
        solver: A name of ``mpq.SOLVERS`` with options, or a solver.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
        InfeasibleError: If no assignment meets the limits.
        SolverError: If the solver fails or finds nothing.
    """
    # First of all: a model that was given has no seed.
    check_task(task, "frontier")
    with listening(callbacks):
        return announced(
            searched_frontier(
                task, resource, limits, num_points, measure, hull,
                Method.of(sensitivity, solver, task.seed),
            )[1]
        )  # fmt: skip


def searched_frontier(
    task: Task,
    resource: str | None,
    limits: Limits,
    num_points: int,
    measure: bool,
    hull: bool,
    method: Method,
) -> tuple[SearchResult, Frontier]:
    """The frontier, and the search that it is of; parameters and errors as of ``frontier``."""
    check_whole("points", num_points)
    if task.sequential_rounding:
        raise InputError(
            "a frontier has many answers, and codes are made again for one: leave out "
            "sequential_rounding (--sequential-rounding), or search at the point that you take"
        )
    if task.bias_correction:
        raise InputError(
            "a frontier has many answers, and biases are corrected for one: leave out "
            "bias_correction (with a recipe that has it: --no-bias-correction), or search at the "
            "point that you take"
        )
    if task.tune is not None:
        raise InputError(
            "a frontier has many answers, and one is tuned: leave out tune (--tune), or search at "
            "the point that you take"
        )
    if task.recalibrate:
        raise InputError(
            "a frontier has many answers, and ranges are chosen again for one: leave out "
            "recalibrate (--recalibrate), or search at the point that you take"
        )
    # A whole search, for what lies beside the curve: the uniform precisions, measured.
    curve = Curve(num_points, measure)
    result, session = searched(task, parse_limits(limits), method, resource, curve=curve)
    with phase(FRONTIER):
        found = result.frontier(resource, num_points, hull)
    if not measure:
        return result, found
    with phase(POINTS):
        return result, session.measured(found)
