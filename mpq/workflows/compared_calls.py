"""How often a comparison of estimators asks the user's own score, told before it does."""

from collections.abc import Sequence
from typing import Final

from mpq._support.events import audience, tell
from mpq.callbacks.results import Planned
from mpq.sensitivity import SensitivityEstimator
from mpq.workflows.score_calls import OF_PRICES, PlannedCalls, num_cells
from mpq.workflows.setup import Prepared

RANDOM, ESTIMATES = "random assignments", "estimates and their optima"
"""Phases of a comparison."""
OF_RANDOM: Final = f"score of {RANDOM}"
OF_OPTIMA: Final = "score of optima"
_ASKED_IN: Final = {OF_RANDOM: RANDOM, OF_PRICES: ESTIMATES, OF_OPTIMA: ESTIMATES}


def tell_calls(
    prepared: Prepared,
    estimators: Sequence[SensitivityEstimator],
    num_limits: int,
    num_random: int,
    rounds: int,
) -> None:
    """Tells ``Planned`` of a score's calls, where the task has one and somebody listens.

    Args:
        prepared: The comparison's own.
        estimators: That are compared.
        num_limits: Limits.
        num_random: Random assignments near each limit.
        rounds: Of refinement, of each optimum.
    """
    judge = prepared.judges.on_held_out
    if judge is None or audience() is None:
        return
    each = num_limits * (1 + (1 + rounds if rounds else 0))
    counts = {
        OF_RANDOM: 1 + num_limits * num_random,  # and the original
        OF_PRICES: sum(num_cells(prepared, estimator) for estimator in estimators),
        OF_OPTIMA: len(estimators) * each,
    }
    asked = {name: count for name, count in counts.items() if count}
    is_clocked = judge.score.call_s is None
    calls = PlannedCalls(judge.score.name, asked, judge.call_s, is_clocked)
    phases: dict[str, float] = {}
    for name, seconds in calls.seconds.items():
        phases[_ASKED_IN[name]] = phases.get(_ASKED_IN[name], 0.0) + seconds
    besides = ("all that is no call of the score",)
    tell(Planned(phases, sum(phases.values()), besides, calls.sentence))
