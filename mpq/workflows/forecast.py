"""What a search that has begun will take, told to whoever listens, from its own first batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from mpq._support.arrays import Columns
from mpq._support.events import unheard
from mpq._support.phases import phase
from mpq.callbacks.plans import PLANNING, is_plan_wanted, tell_plan
from mpq.errors import MpqError
from mpq.problem.constraints import Constraints
from mpq.quantization.precision import Precision
from mpq.solvers.queries.least_cost import MAX_HALVINGS
from mpq.workflows.first_batch import FirstBatch
from mpq.workflows.method import Method
from mpq.workflows.minimize import BISECTED, FRONTIER_POINTS
from mpq.workflows.num_measured import NumMeasured
from mpq.workflows.other_answers import is_mixed
from mpq.workflows.points import hurried, repeatable
from mpq.workflows.score_calls import (
    OF_ANSWERS,
    OF_PRICES,
    OF_TRIALS,
    PlannedCalls,
    ScoreCalls,
)  # fmt: skip
from mpq.workflows.setup import Prepared
from mpq.workflows.uniform import uniform_within
from mpq.workflows.unplanned import OF_MINIMIZED, OF_SOLVER, unplanned

SOON_S: Final = 1.0
"""A search whose layers are found sooner is over before a plan of it is read."""
RANGES: Final = "ranges"
CODES: Final = "codes"
ESTIMATE: Final = "estimate"
SOLVING: Final = "solving"
COMPARING: Final = "comparing with other answers"
MEASURING: Final = "measuring"
FRONTIER: Final = "frontier"
POINTS: Final = "measuring points"
ALTERNATIVES: Final = "alternatives"
_ASKED_IN: Final = {OF_PRICES: ESTIMATE, OF_TRIALS: SOLVING, OF_ANSWERS: COMPARING}
"""The phase in which most calls are, by what they are for."""
ALL_ELSE: Final = "all that is no call of the score"


@final
@dataclass(frozen=True)
class Curve:
    """What is found beside an answer: a frontier, and alternatives.

    Args:
        num_points: Amounts that are solved for; ``None``: the hull, of which it is not known.
        measure: Whether its points are measured.
        num_alternatives: Other answers, which are measured.
    """

    num_points: int | None
    measure: bool = False
    num_alternatives: int = 0

    @property
    def num_measured(self) -> int:
        """Assignments that are measured after the search, as far as it is known."""
        return self.num_alternatives + ((self.num_points or 0) if self.measure else 0)


@final
@dataclass(eq=False)
class Forecast:
    """What is known of a search; grows.

    Args:
        phases: Phase to seconds, see ``Planned``.
        at_most: See ``Planned``.
        besides: See ``Planned``.
    """

    phases: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)
    besides: list[str] = field(default_factory=list)

    def add(self, name: str, seconds: float | None, at_most: float | None = None) -> None:
        """One phase more, of which one of the two is known, or neither."""
        if seconds is not None:
            self.phases[name] = seconds
        elif at_most is not None:
            self.at_most[name] = at_most
        else:
            self.besides.append(name)

    def tell(self, calls: PlannedCalls | None, asked_in: Mapping[str, str]) -> None:
        """Tells ``Planned``, see ``tell_plan``.

        Args:
            calls: Of the user's own score, which are added; ``None``: there are none.
            asked_in: What they are for to the phase in which they are.
        """
        phases, sentence = dict(self.phases), ""
        if calls is not None:
            sentence = calls.sentence
            for name, seconds in calls.seconds.items():
                place = asked_in[name]
                phases[place] = phases.get(place, 0.0) + seconds
        tell_plan(phases, self.at_most, self.besides, sentence)


def tell_forecast(
    prepared: Prepared,
    method: Method,
    constraints: Constraints,
    layers_s: float,
    curve: Curve | None = None,
) -> None:
    """Tells ``Planned``, where somebody listens and the search is long, or asks a score.

    Of one whose cache has estimates already nothing is told: it may have this one, too, and
    planning it would take longer than the search. Of a short search that asks the user's own score
    its calls alone are planned.

    Args:
        prepared: The search's own.
        method: How it is done.
        constraints: What answers have to keep.
        layers_s: Seconds that it took to find the layers.
        curve: What is found beside the answer.
    """
    if prepared.ranks is not None:
        # All of them find ranges together, whoever listens to one.
        _ = prepared.nearest
    score = ScoreCalls.of(prepared.task, method, 0 if curve is None else curve.num_measured)
    first = FirstBatch(prepared)
    is_long = layers_s >= SOON_S or method.estimator.is_measuring or method.solver.is_measuring
    is_long = is_long and first.is_small and not has_estimates(prepared)
    if not is_plan_wanted() or not (is_long or score is not None):
        return
    with phase(PLANNING), unheard():
        plain = method if score is None else score.without(method)
        told = forecast(first, plain, constraints, curve) if is_long else Forecast()
        calls = None if score is None else _calls(prepared, score, constraints)
    if not is_long:
        told.besides.append(ALL_ELSE)
    told.tell(calls, _ASKED_IN)


def _calls(prepared: Prepared, score: ScoreCalls, constraints: Constraints) -> PlannedCalls:
    # Its call about the original, which is clocked, is one that the search needs.
    judge = prepared.judges.on_held_out
    assert judge is not None  # the task has a score
    return score.planned(prepared, judge, prepared.indifferent(constraints))


def has_estimates(prepared: Prepared) -> bool:
    """Whether a cache has estimates, of whatever search."""
    return prepared.cache is not None and any(prepared.cache.folder.glob("*.estimate"))


def forecast(
    first: FirstBatch, method: Method, constraints: Constraints, curve: Curve | None = None
) -> Forecast:
    """What a search will take after its layers are found."""
    prepared, told, found = first.prepared, Forecast(), None
    if first.codes_s:
        told.add(CODES, first.codes_s)
    try:
        estimate_s, found = first.estimate(method.estimator)
    except MpqError:  # of so few examples; if it is of all of them, the search itself says so
        told.add(ESTIMATE, None)
    else:
        told.add(ESTIMATE, *((estimate_s,) if found is not None else (None, estimate_s)))
        if method.rounds:
            told.add("refinement", None, method.rounds * (estimate_s + first.calibration_s))
    for name in unplanned(prepared.task, method):
        if name not in (OF_SOLVER, OF_MINIMIZED):
            told.add(name, None)
    if method.objective is None:
        count = 1 + is_mixed(prepared.candidates)  # that of integers alone, too
        each = first.solving(method.solver, constraints, found)
        told.add(SOLVING, *(_times(seconds, count) for seconds in each))
    else:
        each = first.solving(hurried(method.solver), constraints, found)
        told.add(SOLVING, None, _minimizing_s(first, method, constraints, each))
    told.phases |= _compared(first, constraints)
    if curve is not None:
        each = first.solving(repeatable(method.solver, prepared.task.seed), constraints, found)
        told.add(FRONTIER, *(_times(seconds, curve.num_points) for seconds in each))
        if curve.measure:
            # Equal answers are one point.
            told.add(POINTS, None, _times(first.held_out_s, curve.num_points))
        if curve.num_alternatives:
            # One that has to differ is harder to find than the answer: it is not known how much.
            told.add(ALTERNATIVES, None)
    return told


def _minimizing_s(
    first: FirstBatch,
    method: Method,
    constraints: Constraints,
    each: tuple[float | None, float | None],
) -> float | None:
    """Seconds of making a resource small, at most; ``None``: not known of a solution.

    Args:
        each: Of one solution, known or at most.
    """
    assert method.objective is not None
    known, at_most = each
    one_s = at_most if known is None else known
    if method.objective.max_loss is not None:
        # A sum changes places with the cost; with interactions the cost is bisected.
        return _times(one_s, 2 if known is not None else 2 + MAX_HALVINGS)
    # Both ends of the frontier have solutions of their own. Beside its points the original is
    # measured, and uniform precisions, as cheaper ones may do.
    solving_s = _times(one_s, 2 + FRONTIER_POINTS)
    count = 1 + BISECTED + (len(_uniform(first, constraints)) if method.safeguard else 0)
    return None if solving_s is None else solving_s + count * first.held_out_s


def _times(seconds: float | None, count: int | None) -> float | None:
    return None if seconds is None or count is None else seconds * count


def _uniform(first: FirstBatch, constraints: Constraints) -> Mapping[Precision, Columns]:
    return uniform_within(first.prepared.indifferent(constraints))


def _compared(first: FirstBatch, constraints: Constraints) -> Iterator[tuple[str, float]]:
    count = NumMeasured.of(first.prepared, len(_uniform(first, constraints)))
    yield (
        COMPARING,
        count.compared * first.held_out_s + count.on_calibration * first.calibration_s,
    )
    yield MEASURING, count.others * first.held_out_s
