"""What became of a step that is tried on unseen examples before an answer keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrialRecord:
    """The verdict on one step, and what it rests on.

    Args:
        is_kept: Whether the answer has what the step made.
        why: Why not; empty: it has.
        num_examples: Calibration examples on which it was decided, each with what others made; 0:
            there was no trial.
        loss: What they lose in the trial's networks, in the metric's unit.
        loss_before: What they lose without the step.
    """

    is_kept: bool
    why: str = ""
    num_examples: int = 0
    loss: float | None = None
    loss_before: float | None = None

    def told(self, made: str, unit: str) -> str:
        """What people should know.

        Args:
            made: What the step did, where it is kept.
            unit: Of the losses.
        """
        found = made if self.is_kept else f"not kept: {self.why}"
        if self.loss is None or self.loss_before is None:
            return found
        return (
            f"{found}; {self.num_examples} calibration examples that a trial had not seen lose "
            f"{self.loss:.3g} {unit} by it, not {self.loss_before:.3g}"
        )
