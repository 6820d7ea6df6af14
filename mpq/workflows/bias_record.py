"""What became of correcting an answer's biases."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class BiasCorrection:
    """What became of correcting an answer's biases.

    Args:
        is_kept: Whether the answer has other biases.
        why: Why not; empty: it has.
        num_examples: Calibration examples on which it was decided, each with biases from others; 0:
            there was no trial.
        loss: What they lose in the trial's networks, in the metric's unit.
        loss_before: What they lose without the correction.
        corrected: Layers, and BatchNorms that are not folded, that can be corrected.
        left: Those that cannot, and why.
    """

    is_kept: bool
    why: str = ""
    num_examples: int = 0
    loss: float | None = None
    loss_before: float | None = None
    corrected: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def sentences(self, unit: str) -> Iterator[str]:
        """What people should know.

        Args:
            unit: Of the losses.
        """
        told = f"not kept: {self.why}"
        if self.is_kept:
            told = f"{len(self.corrected)} layers get their mean outputs back"
        if self.loss is not None and self.loss_before is not None:
            told += (
                f"; {self.num_examples} calibration examples that a trial had not seen lose "
                f"{self.loss:.3g} {unit} by it, not {self.loss_before:.3g}"
            )
        yield f"bias correction: {told}"
        if self.left:
            counts = Counter(self.left.values())
            yield "biases that stay: " + "; ".join(f"{n} ({why})" for why, n in counts.items())
