"""What a search that has begun will take, told to whoever listens, from its own first batch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mpq._support.events import audience, tell, unheard
from mpq._support.phases import phase
from mpq.callbacks.results import Planned
from mpq.errors import GradientError
from mpq.network.modules import share_parameters
from mpq.problem.constraints import Constraints
from mpq.sensitivity import Estimation
from mpq.sensitivity.measured import Measured
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.method import Method
from mpq.workflows.one_measurement import timed
from mpq.workflows.other_answers import is_mixed
from mpq.workflows.score_calls import (
    OF_ANSWERS,
    OF_PRICES,
    OF_SOLVER,
    PlannedCalls,
    ScoreCalls,
)  # fmt: skip
from mpq.workflows.setup import Prepared
from mpq.workflows.uniform import uniform_within

LONG_S: Final = 2.0
"""A search whose layers are found sooner is over before a plan of it is read."""
MOST_SHARE: Final = 1 / 8
"""Of the examples that the first batch may be: it is looked at twice more than the search does."""
ESTIMATE: Final = "ranges, codes, estimate"
COMPARING: Final = "comparing with other answers"
MEASURING: Final = "measuring"
SOLVING: Final = "solving"
_ASKED_IN: Final = {OF_PRICES: ESTIMATE, OF_SOLVER: SOLVING, OF_ANSWERS: COMPARING}
"""The phase in which most calls are, by what they are for."""


def tell_forecast(
    prepared: Prepared,
    method: Method,
    constraints: Constraints,
    layers_s: float,
    num_points: int = 0,
) -> None:
    """Tells ``Planned``, where somebody listens and the search is long, or asks a score.

    The estimate is made of the first batch and one network measured on the first held-out one, all
    weights to nearest; seconds grow with the examples. Ranges that are found for it are kept for
    the search. ``workflows.plan`` counts more, and takes longer: codes of weights and the solution
    are not in this, and told so. Of a search that several processes share, and of a streamed one,
    nothing is told. Of a short search that asks the user's own score its calls alone are planned.

    Args:
        prepared: The search's own.
        method: How it is done.
        constraints: What answers have to keep.
        layers_s: Seconds that it took to find the layers.
        num_points: Assignments that are measured after the search, as those of a frontier.
    """
    score = ScoreCalls.of(prepared.task, method, num_points)
    first = prepared.calibration.first().size
    is_long = layers_s >= LONG_S and first <= MOST_SHARE * prepared.calibration.num_examples
    if audience() is None or prepared.ranks is not None or prepared.task.streamed:
        return
    if not is_long and score is None:
        return
    with phase("planning"), unheard():
        plain = method if score is None else score.without(method)
        phases = dict(_phases(prepared, plain, constraints)) if is_long else {}
        calls = None if score is None else _calls(prepared, score, constraints)
        for name, seconds in {} if calls is None else calls.seconds.items():
            phases[_ASKED_IN[name]] = phases.get(_ASKED_IN[name], 0.0) + seconds
    besides = [SOLVING] if is_long else ["all that is no call of the score"]
    if is_long and prepared.task.weight_rounding.reads_inputs:
        besides.insert(0, "codes of weights")
    told = "" if calls is None else calls.sentence
    tell(Planned(phases, sum(phases.values()), tuple(besides), told))


def _calls(prepared: Prepared, score: ScoreCalls, constraints: Constraints) -> PlannedCalls:
    # Its call about the original, which is clocked, is one that the search needs.
    judge = prepared.judges.on_held_out
    assert judge is not None  # the task has a score
    return score.planned(prepared, judge, len(uniform_within(prepared.indifferent(constraints))))


def _phases(
    prepared: Prepared, method: Method, constraints: Constraints
) -> Iterator[tuple[str, float]]:
    num_calibration = prepared.calibration.num_examples
    yield ESTIMATE, _estimate_s(prepared, method) * num_calibration
    example_s = _measurement_s(prepared)
    held_out_s = example_s * prepared.held_out.num_examples
    within = len(uniform_within(prepared.indifferent(constraints)))
    is_coded = prepared.task.weight_rounding.reads_inputs
    # As ``workflows.plan`` counts them.
    compared_s = (1 + within + is_coded + is_mixed(prepared.candidates)) * held_out_s
    if within and not is_coded:
        compared_s += (within + 1) * example_s * num_calibration
    yield COMPARING, compared_s
    yield MEASURING, (len(prepared.candidates) - within) * held_out_s


def _estimate_s(prepared: Prepared, method: Method) -> float:
    """Seconds for each calibration example."""
    data, network = prepared.calibration, prepared.network
    few = data.until(data.first().size)
    judges = replace(prepared.judges, calibration=few, cache=None)
    on = judges.asked(Estimation(network, few, prepared.nearest, prepared.candidates))
    estimator = method.estimator.for_examples(data.num_examples)
    try:
        estimator.estimate(on)
    except GradientError:  # as ``auto`` does; of others the search itself says it
        estimator = Measured()
        estimator.estimate(on)
    # Once more: the first time ranges of weights were searched for.
    return timed(lambda: estimator.estimate(on), network.device)[1] / few.num_examples


def _measurement_s(prepared: Prepared) -> float:
    """Seconds of one measurement for each example."""
    few = prepared.held_out.until(prepared.held_out.first().size)
    network, plain = prepared.network, share_parameters(prepared.task.model)
    reference = Reference(plain, few, network.metric, prepared.task.allow_randomness)
    evaluator = Evaluator(network, prepared.nearest, reference)
    chosen = evaluator.uniform(prepared.candidates[0])
    evaluator.sums(chosen)  # what the original answers is asked once, and not counted
    _, seconds, _ = timed(lambda: evaluator.sums(chosen), network.device)
    return seconds / few.num_examples
