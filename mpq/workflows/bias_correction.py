"""Whether an answer's biases are corrected: where unseen examples say that it helps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from torch import nn

from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq.backends import quantize
from mpq.network.examples import Calibration
from mpq.network.metric import OutputMetric
from mpq.network.modules import share_parameters
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment
from mpq.report.measurement import Measurement
from mpq.tuning.bias_correction import Corrected, bias_corrected
from mpq.workflows.bias_record import BiasCorrection
from mpq.workflows.evaluate import Reference
from mpq.workflows.result import SearchResult
from mpq.workflows.setup import Prepared

UNSEEN_SHARE: Final = 0.25
"""Of the calibration examples, that the trial does not correct with."""


def with_corrected_biases(
    found: SearchResult, prepared: Prepared, accepts: Callable[[Measurement], bool]
) -> SearchResult:
    """The result with its answer's biases corrected, or as it was; says what was tried.

    Takes three corrections' passes at most (``bias_corrected``), and a few over some examples.

    Args:
        found: The search's.
        prepared: The network and its data.
        accepts: Whether what is measured of the answer is good enough for an objective.
    """
    task, metric = prepared.task, prepared.network.metric
    assignment, told = corrected(task.model, found.assignment, prepared.calibration, metric)
    if told.is_kept:
        reached = measured(task.model, assignment, prepared.on_held_out.reference)
        if accepts(reached):
            found = found.with_answer(assignment, {"result": reached})
        else:
            why = "with it the answer does not keep the objective's limit on the loss"
            told = replace(told, is_kept=False, why=why)
    return replace(found, provenance=replace(found.provenance, bias_correction=told))


def corrected(
    model: nn.Module, assignment: Assignment, data: Calibration, metric: OutputMetric
) -> tuple[Assignment, BiasCorrection]:
    """An assignment with corrected biases where they help, or as it was.

    That is decided on the last quarter of the calibration examples: with biases that the others
    give, they must lose less there, beyond chance (Student's t of paired examples, one-sided, 5 %).
    Those that are kept are made with all. Codes are those of the assignment in the trial as well.

    Args:
        model: As the user gave it; it stays as it is.
        assignment: Of a search.
        data: Calibration examples.
        metric: How outputs are compared.
    """
    if data.num_examples < 2:
        why = "there is a single calibration example, or one batch whose rows mix"
        return assignment, BiasCorrection(False, why)
    seen, unseen = data.split(UNSEEN_SHARE)
    tried = bias_corrected(model, assignment, seen)
    if not tried.moved:
        why = "no layer has a bias that can be corrected"
        return assignment, BiasCorrection(False, why, left=tried.left)
    plain, seed = share_parameters(model), assignment.metadata.allow_randomness
    reference = Reference(plain, unseen, metric, seed)
    before, after = (measured(model, each, reference) for each in (assignment, tried.assignment))
    told = _told(before, after, tried)
    if not told.is_kept:
        return assignment, told
    made = bias_corrected(model, assignment, data)
    return made.assignment, replace(told, corrected=made.moved, left=made.left)


def measured(model: nn.Module, assignment: Assignment, reference: Reference) -> Measurement:
    """Through ``mpq.quantize``: what is decided by and measured is what is shipped."""
    module = quantize(model, assignment)
    return reference.compare(begin_alike(module, assignment.metadata.allow_randomness))


def _told(before: Measurement, after: Measurement, tried: Corrected) -> BiasCorrection:
    is_better = is_above_chance(relative_gains(before.by_example, after.by_example))
    return BiasCorrection(
        is_better,
        "" if is_better else "unseen examples do not lose less by it, beyond chance",
        after.num_examples,
        after.divergence,
        before.divergence,
        tried.moved,
        tried.left,
    )
