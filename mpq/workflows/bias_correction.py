"""Whether an answer's biases are corrected: where unseen examples say that it helps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from torch import nn

from mpq._support.arrays import Array
from mpq._support.paired_gains import LEVEL, is_above_chance, relative_gains
from mpq.network.examples import Calibration
from mpq.network.folds import folds
from mpq.network.metric import OutputMetric
from mpq.network.modules import share_parameters
from mpq.problem.assignment import Assignment
from mpq.report.measurement import Measurement
from mpq.tuning.bias_correction import Corrected, bias_corrected
from mpq.workflows.bias_record import BiasCorrection
from mpq.workflows.evaluate import Reference
from mpq.workflows.result import SearchResult
from mpq.workflows.setup import Prepared
from mpq.workflows.shipped import measured, why_worse

UNSEEN_SHARE: Final = 0.25
"""Of the calibration examples, that the trial does not correct with."""


def with_corrected_biases(
    found: SearchResult, prepared: Prepared, accepts: Callable[[Measurement], bool]
) -> SearchResult:
    """The result with its answer's biases corrected, or as it was; says what was tried.

    Takes the passes of five corrections at most (``bias_corrected``), and a few to measure.

    Args:
        found: The search's.
        prepared: The network and its data.
        accepts: Whether what is measured of the answer is good enough for an objective. A score of
            the user's own has to be no worse besides.
    """
    task, metric = prepared.task, prepared.network.metric
    assignment, told = corrected(task.model, found.assignment, prepared.calibration, metric)
    if told.is_kept:
        judge = prepared.judges.on_held_out
        reached = measured(task.model, assignment, prepared.on_held_out.reference, judge)
        why = why_worse(judge, found.measured, reached)
        if not accepts(reached):
            why = "with it the answer does not keep the objective's limit on the loss"
        if not why:
            found = found.with_answer(assignment, {"result": reached})
        told = replace(told, is_kept=not why, why=why)
    return replace(found, provenance=replace(found.provenance, bias_correction=told))


def corrected(
    model: nn.Module, assignment: Assignment, data: Calibration, metric: OutputMetric
) -> tuple[Assignment, BiasCorrection]:
    """An assignment with corrected biases where they help, or as it was.

    That is decided on the last quarter of the calibration examples: with biases that the others
    give, they must lose less there, beyond chance (Student's t of paired examples, one-sided,
    2.5 %). Where they do not, on all: every quarter with biases from the others (2.5 % again).
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
    first, *others = folds(data, UNSEEN_SHARE)
    tried = bias_corrected(model, assignment, first[0])
    if not tried.moved:
        why = "no layer has a bias that can be corrected"
        return assignment, BiasCorrection(False, why, left=tried.left)

    def losses(unseen: Calibration, other: Assignment) -> tuple[Array, Array]:
        plain, seed = share_parameters(model), assignment.metadata.allow_randomness
        reference = Reference(plain, unseen, metric, seed)
        before, after = (measured(model, each, reference) for each in (assignment, other))
        return before.by_example, after.by_example

    found = [losses(first[1], tried.assignment)]
    if not _is_better(found):
        found += [
            losses(unseen, bias_corrected(model, assignment, seen).assignment)
            for seen, unseen in others
        ]
    told = _told(found, tried)
    if not told.is_kept:
        return assignment, told
    made = bias_corrected(model, assignment, data)
    return made.assignment, replace(told, corrected=made.moved, left=made.left)


def _is_better(losses: Sequence[tuple[Array, Array]]) -> bool:
    gains = [relative_gains(before, after) for before, after in losses]
    return is_above_chance(np.concatenate(gains), LEVEL / 2)  # asked twice at most


def _told(losses: Sequence[tuple[Array, Array]], tried: Corrected) -> BiasCorrection:
    is_better = _is_better(losses)
    before, after = (np.concatenate(parts) for parts in zip(*losses, strict=True))
    return BiasCorrection(
        is_better,
        "" if is_better else "unseen examples do not lose less by it, beyond chance",
        len(after),
        float(after.mean()),
        float(before.mean()),
        tried.moved,
        tried.left,
    )
