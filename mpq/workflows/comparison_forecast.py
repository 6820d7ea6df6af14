"""What a comparison that has begun will take, told from its first batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from warnings import catch_warnings, simplefilter

from mpq._support.events import unheard
from mpq._support.phases import phase
from mpq.callbacks.plans import PLANNING, is_long, is_plan_wanted
from mpq.errors import InfeasibleError, MpqError
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limit
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.first_batch import FirstBatch
from mpq.workflows.forecast import ALL_ELSE, Forecast, forecast, has_estimates
from mpq.workflows.method import Method
from mpq.workflows.score_calls import (
    OF_ANSWERS,
    OF_PRICES,
    OF_TRIALS,
    PlannedCalls,
    num_cells,
)  # fmt: skip
from mpq.workflows.setup import Prepared

DRAWN: Final = "random assignments"
SCORED: Final = "estimates and their optima"
CELLS: Final = "solving and measured cells"
RECIPES: Final = "recipes"
OF_RANDOM: Final = f"score of {DRAWN}"
OF_OPTIMA: Final = "score of optima"
_ASKED_IN: Final = {OF_RANDOM: DRAWN, OF_PRICES: SCORED, OF_OPTIMA: SCORED}
_LEAST_MEASURED: Final = 20
"""What a search takes at the least, in measurements of one network."""


def comparison_calls(
    prepared: Prepared,
    estimators: Sequence[SensitivityEstimator],
    num_limits: int,
    num_random: int,
    rounds: int,
) -> PlannedCalls | None:
    """How often the user's own score is asked; ``None``: the task has none, or nobody listens.

    Args:
        prepared: The comparison's own.
        estimators: That are compared.
        num_limits: Limits.
        num_random: Random assignments near each limit.
        rounds: Of refinement, of each optimum.
    """
    judge = prepared.judges.on_held_out
    if judge is None or not is_plan_wanted():
        return None
    each = num_limits * (1 + (1 + rounds if rounds else 0))
    counts = {
        OF_RANDOM: 1 + num_limits * num_random,  # and the original
        OF_PRICES: sum(num_cells(prepared, estimator) for estimator in estimators),
        OF_OPTIMA: len(estimators) * each,
    }
    return PlannedCalls.of(judge, counts)


def tell_comparison(
    prepared: Prepared,
    constraints: Mapping[str, Constraints],
    solver: Solver,
    left: Callable[[], tuple[int, Sequence[str]]],
    calls: PlannedCalls | None = None,
) -> None:
    """Tells ``Planned`` of a comparison of estimators, where it takes long or asks a score.

    Args:
        prepared: The comparison's own.
        constraints: By limit.
        solver: Of every estimator's optimum.
        left: How many assignments are still to be measured, and which estimators to be asked.
        calls: Of the user's own score.
    """
    if not is_plan_wanted():
        return
    told = _without_calls(prepared, constraints, solver, left)
    if told is None and calls is None:
        return
    if told is None:
        told = Forecast(besides=[ALL_ELSE])
    told.tell(calls, _ASKED_IN)


def _without_calls(
    prepared: Prepared,
    constraints: Mapping[str, Constraints],
    solver: Solver,
    left: Callable[[], tuple[int, Sequence[str]]],
) -> Forecast | None:
    """``None`` of what is over soon."""
    first = FirstBatch(prepared)
    if not first.is_small:
        return None
    num_drawn, estimators = left()
    if not num_drawn and not estimators:
        return None
    with unheard():
        measured_s = first.held_out_s / first.num_workers
    optima_s = len(estimators) * len(constraints) * measured_s
    if not is_long(2 * (num_drawn * measured_s + optima_s)):
        return None
    with phase(PLANNING), unheard():
        told = Forecast({DRAWN: first.codes_s + num_drawn * measured_s})
        _score(told, first, constraints, solver, estimators, optima_s)
    return told


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


def tell_recipes(
    prepared: Prepared, limit: Limit, method: Method, count: int, calls: PlannedCalls | None = None
) -> None:
    """Tells ``Planned`` of searches by recipes, each as long as the first one, by default.

    It is corrected as they end: a recipe that measures takes much longer.

    Args:
        prepared: The default's.
        limit: Of the first search.
        method: The default's.
        count: Of the searches.
        calls: Of the user's own score, which are planned of short searches, too.
    """
    told = _of_recipes(prepared, limit, method, count)
    if told is None and calls is not None:
        told = Forecast(besides=[ALL_ELSE])
    if told is not None:
        told.tell(calls, dict.fromkeys((OF_PRICES, OF_TRIALS, OF_ANSWERS), RECIPES))


def _of_recipes(prepared: Prepared, limit: Limit, method: Method, count: int) -> Forecast | None:
    """Without calls of a score; ``None`` of what is over soon."""
    first = FirstBatch(prepared)
    if not is_plan_wanted() or not first.is_small or has_estimates(prepared):
        return None
    with unheard():
        if not is_long(_LEAST_MEASURED * count * first.held_out_s):
            return None
    with phase(PLANNING), unheard(), catch_warnings():
        simplefilter("ignore")  # of the limit, of which the search itself warns
        try:
            each = forecast(first, method, prepared.constraints([limit]))
        except InfeasibleError:  # which the search says itself
            return None
    at_most = {"solving": count * sum(each.at_most.values())} if each.at_most else {}
    return Forecast({RECIPES: count * sum(each.phases.values())}, at_most, each.besides)
