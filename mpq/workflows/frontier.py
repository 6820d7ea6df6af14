"""The least loss for every amount of one resource."""

from collections.abc import Collection, Sequence

from mpq._support.bounds import check_whole
from mpq._support.events import Callback, listening
from mpq._support.phases import phase
from mpq.errors import InputError
from mpq.problem.limits import Limits, parse_limits
from mpq.recipes import Recipe
from mpq.report.frontier import Frontier
from mpq.sensitivity import SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.defaults import ESTIMATOR, NUM_POINTS, SOLVER
from mpq.workflows.follow import Way, follow
from mpq.workflows.forecast import FRONTIER, POINTS, Curve
from mpq.workflows.outcome import announced
from mpq.workflows.result import SearchResult
from mpq.workflows.search import searched
from mpq.workflows.session import Session
from mpq.workflows.task import Task, check_task


def frontier(
    task: Task,
    resource: str | None = None,
    limits: Limits = (),
    *,
    num_points: int | None = NUM_POINTS,
    measure: bool = False,
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    callbacks: Sequence[Callback] = (),
    recipe: str | Recipe | None = None,
    keep: Collection[str] = (),
) -> Frontier:
    """Finds what every amount of a resource buys: the least predicted loss, limits held.

    Args:
        task: The network, its data, and what its layers may become; as in ``mpq.search``.
        resource: Any that is a sum over layers; default: that of the first such limit, or bytes of
            weights.
        limits: Budgets that every point meets, and that of the resource itself; as in
            ``mpq.search``. There may be none.
        num_points: How many amounts are solved for, evenly spaced; equal answers are one point.
            ``None``: the complete lower convex hull of the additive frontier instead.
        measure: Whether every point is tried on the held-out examples.
        sensitivity: A name of ``mpq.ESTIMATORS`` with options, or an estimator.
        solver: A name of ``mpq.SOLVERS`` with options, or a solver.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.
        recipe: A published system whose settings are taken, as in ``mpq.search``.
        keep: Settings that stand though they are as by default, as in ``mpq.search``.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
        InfeasibleError: If no assignment meets the limits.
        SolverError: If the solver fails or finds nothing.
    """
    # First of all: a model that was given has no seed.
    check_task(task, "frontier")
    with listening(callbacks):
        way = follow(recipe, Way(task, sensitivity, solver), keep)
        return announced(searched_frontier(way, resource, limits, num_points, measure)[1])


def searched_frontier(
    way: Way,
    resource: str | None,
    limits: Limits,
    num_points: int | None,
    measure: bool,
) -> tuple[SearchResult, Frontier]:
    """The frontier, and the search that it is of; parameters and errors as of ``frontier``.

    Args:
        way: How the search is done.
        resource: As of ``frontier``, like all that follow.
    """
    if num_points is not None:
        check_whole("points", num_points)
    parsed = parse_limits(limits)
    with way.naming():
        _check_one_answer(way.task)
        # A whole search, for what lies beside the curve: the uniform precisions, measured.
        curve = Curve(num_points, measure)
        result, session = searched(way.task, parsed, way.method(), resource, curve=curve)
        return way.noted(result), curve_of(result, session, resource, num_points, measure)


def curve_of(
    result: SearchResult,
    session: Session,
    resource: str | None,
    num_points: int | None,
    measure: bool,
) -> Frontier:
    """The frontier of a search, in the phases that its plan has; parameters as of ``frontier``.

    Args:
        result: Of the search.
        session: What is live of it: a result holds no network.
        resource: As of ``frontier``, like all that follow.
    """
    with phase(FRONTIER):
        found = result.frontier(resource, num_points)
    if not measure:
        return found
    asked = result.provenance.asked
    with phase(POINTS):
        # Nothing takes the place of a recipe's points, as nothing does of its answer.
        return session.measured(found, safeguard=asked is None or asked.safeguard)


def _check_one_answer(task: Task) -> None:
    """Refuses what is done to one answer of a search."""
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
            "a frontier has many answers, and one is tuned: leave out tune (--tune; with a recipe "
            "that has it: --tune none), or search at the point that you take"
        )
    if task.recalibrate:
        raise InputError(
            "a frontier has many answers, and ranges are chosen again for one: leave out "
            "recalibrate (--recalibrate), or search at the point that you take"
        )
