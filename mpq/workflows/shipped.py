"""What is measured of an assignment through ``mpq.quantize``: of what is shipped."""

from dataclasses import replace

from torch import nn

from mpq.backends import quantize
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment
from mpq.report.measurement import Measurement
from mpq.workflows.evaluate import Reference
from mpq.workflows.score import Judge


def measured(
    model: nn.Module, assignment: Assignment, reference: Reference, judge: Judge | None = None
) -> Measurement:
    """Of the network in the assigned formats.

    Args:
        model: The original.
        assignment: What is applied, with biases and whatever was tuned.
        reference: The original's answers.
        judge: The user's own score; ``None``: it is not asked.
    """
    module = quantize(model, assignment)
    found = reference.compare(begin_alike(module, assignment.metadata.allow_randomness))
    if judge is None:
        return found
    return replace(found, score=judge.of_made(module, assignment))


def why_worse(judge: Judge | None, before: Measurement, after: Measurement) -> str:
    """Why an answer stays as it was though examples lose less, a sentence; empty: its score agrees.

    Args:
        judge: The user's own score; ``None``: there is none.
        before: Of the answer.
        after: With what was changed.
    """
    if judge is None or before.score is None or after.score is None:
        return ""
    if judge.drop(after.score) <= judge.drop(before.score):
        return ""
    return f"with it {judge.score.name} is worse: {after.score:.4g} after {before.score:.4g}"
