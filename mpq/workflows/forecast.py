"""What a search that has begun will take, told to whoever listens, from its own first batch."""

from collections.abc import Iterator
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
from mpq.workflows.setup import Prepared
from mpq.workflows.uniform import uniform_within

LONG_S: Final = 2.0
"""A search whose layers are found sooner is over before a plan of it is read."""
MOST_SHARE: Final = 1 / 8
"""Of the examples that the first batch may be: it is looked at twice more than the search does."""
ESTIMATE: Final = "ranges, codes, estimate"
COMPARING: Final = "comparing with other answers"
MEASURING: Final = "measuring"


def tell_forecast(
    prepared: Prepared, method: Method, constraints: Constraints, layers_s: float
) -> None:
    """Tells ``Planned``, where somebody listens and the search is long.

    The estimate is made of the first batch and one network measured on the first held-out one, all
    weights to nearest; seconds grow with the examples. Ranges that are found for it are kept for
    the search. ``workflows.plan`` counts more, and takes longer: codes of weights and the solution
    are not in this, and told so. Of a search that several processes share, and of a streamed one,
    nothing is told.

    Args:
        prepared: The search's own.
        method: How it is done.
        constraints: What answers have to keep.
        layers_s: Seconds that it took to find the layers.
    """
    first = prepared.calibration.first().size
    is_long = layers_s >= LONG_S and first <= MOST_SHARE * prepared.calibration.num_examples
    if audience() is None or not is_long or prepared.ranks is not None or prepared.task.streamed:
        return
    with phase("planning"), unheard():
        phases = dict(_phases(prepared, method, constraints))
    besides = ["solving"]
    if prepared.task.weight_rounding.reads_inputs:
        besides.insert(0, "codes of weights")
    tell(Planned(phases, sum(phases.values()), tuple(besides)))


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
    on = Estimation(network, few, prepared.nearest, prepared.candidates)
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
