"""What the loss of an answer is: predicted, or measured, and on what."""

from mpq.problem.assignment import Assignment
from mpq.report.frontier import CALIBRATION_LOSS, PREDICTED_LOSS, TRIAL_LOSS
from mpq.workflows.built_in_scores import BUILT_IN
from mpq.workflows.provenance import Provenance


def loss_kind(provenance: Provenance, assignment: Assignment) -> str:
    """Its name in files; a function of the user's looks at examples of its own."""
    if not provenance.is_loss_measured:
        return PREDICTED_LOSS
    is_own = assignment.metadata.score not in (None, *BUILT_IN)
    return TRIAL_LOSS if is_own else CALIBRATION_LOSS
