"""What a comparison that has begun will take, told from its first batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from warnings import catch_warnings, simplefilter

from mpq._support.events import unheard
from mpq._support.phases import phase
from mpq.callbacks.plans import PLANNING, is_long, is_plan_wanted, tell_plan
from mpq.errors import InfeasibleError, MpqError
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limit
from mpq.sensitivity import ESTIMATORS
from mpq.solvers import Solver
from mpq.workflows.first_batch import FirstBatch
from mpq.workflows.forecast import Forecast, forecast, has_estimates
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

DRAWN: Final = "random assignments"
SCORED: Final = "estimates and their optima"
CELLS: Final = "solving and measured cells"
RECIPES: Final = "recipes"
_LEAST_MEASURED: Final = 20
"""What a search takes at the least, in measurements of one network."""


def tell_comparison(
    prepared: Prepared,
    constraints: Mapping[str, Constraints],
    solver: Solver,
    left: Callable[[], tuple[int, Sequence[str]]],
) -> None:
    """Tells ``Planned`` of a comparison of estimators, where somebody listens and it takes long.

    Args:
        prepared: The comparison's own.
        constraints: By limit.
        solver: Of every estimator's optimum.
        left: How many assignments are still to be measured, and which estimators to be asked.
    """
    first = FirstBatch(prepared)
    if not is_plan_wanted() or not first.is_small:
        return
    num_drawn, estimators = left()
    if not num_drawn and not estimators:
        return
    with unheard():
        measured_s = first.held_out_s / first.num_workers
    optima_s = len(estimators) * len(constraints) * measured_s
    if not is_long(2 * (num_drawn * measured_s + optima_s)):
        return
    with phase(PLANNING), unheard():
        told = Forecast({DRAWN: first.codes_s + num_drawn * measured_s})
        _score(told, first, constraints, solver, estimators, optima_s)
    tell_plan(told.phases, told.at_most, told.besides)


def _score(
    told: Forecast,
    first: FirstBatch,
    constraints: Mapping[str, Constraints],
    solver: Solver,
    estimators: Sequence[str],
    optima_s: float,
) -> None:
    """Adds what the estimators will take, one after the other or on workers, and their optima."""
    seconds, most_s = optima_s, 0.0
    for text in estimators:
        estimator = ESTIMATORS.build(text, first.prepared.task.seed)
        try:
            each_s, found = first.estimate(estimator)
        except MpqError:  # what it cannot do is its result, not ours
            continue
        if found is None:
            most_s += each_s
        else:
            seconds += each_s / first.num_workers
        for held in constraints.values():
            solve_s, limit_s = first.solving(solver, held, found)
            seconds += solve_s or 0.0
            most_s += limit_s or 0.0
    told.add(SCORED, seconds)
    if most_s:
        told.add(CELLS, None, most_s)


def tell_recipes(prepared: Prepared, limit: Limit, method: Method, count: int) -> None:
    """Tells ``Planned`` of searches by recipes, each as long as the first one, by default.

    It is corrected as they end: a recipe that measures takes much longer.

    Args:
        prepared: The default's.
        limit: Of the first search.
        method: The default's.
        count: Of the searches.
    """
    first = FirstBatch(prepared)
    if not is_plan_wanted() or not first.is_small or has_estimates(prepared):
        return
    with unheard():
        if not is_long(_LEAST_MEASURED * count * first.held_out_s):
            return
    with phase(PLANNING), unheard(), catch_warnings():
        simplefilter("ignore")  # of the limit, of which the search itself warns
        try:
            each = forecast(first, method, prepared.constraints([limit]))
        except InfeasibleError:  # which the search says itself
            return
    at_most = {"solving": count * sum(each.at_most.values())} if each.at_most else {}
    tell_plan({RECIPES: count * sum(each.phases.values())}, at_most, each.besides)
