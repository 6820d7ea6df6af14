"""What became of correcting an answer's biases."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

from mpq.workflows.trial_record import TrialRecord


@final
@dataclass(frozen=True)
class BiasCorrection(TrialRecord):
    """What became of correcting an answer's biases.

    Args:
        corrected: Layers, and BatchNorms that are not folded, that can be corrected.
        left: Those that cannot, and why.
    """

    corrected: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def sentences(self, unit: str) -> Iterator[str]:
        """What people should know.

        Args:
            unit: Of the losses.
        """
        made = f"{len(self.corrected)} layers get their mean outputs back"
        yield f"bias correction: {self.told(made, unit)}"
        if self.left:
            counts = Counter(self.left.values())
            yield "biases that stay: " + "; ".join(f"{n} ({why})" for why, n in counts.items())
