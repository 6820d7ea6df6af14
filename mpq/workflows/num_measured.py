"""How many networks a search measures once it has an answer, as both of its plans count them."""

from dataclasses import dataclass
from typing import Self, final

from mpq.workflows.other_answers import most_others
from mpq.workflows.setup import Prepared


@final
@dataclass(frozen=True)
class NumMeasured:
    """At most, each once.

    Args:
        compared: On held-out examples, where the answer is compared with others.
        others: On held-out examples, afterwards: uniform precisions beyond the limits.
        on_calibration: On calibration examples.
    """

    compared: int
    others: int
    on_calibration: int

    @classmethod
    def of(cls, prepared: Prepared, num_uniform: int) -> Self:
        """Of a search with so many uniform precisions within its limits."""
        candidates, is_coded = prepared.candidates, prepared.task.weight_rounding.reads_inputs
        compared = 1 + num_uniform + most_others(prepared)
        # Calibration examples say nothing where codes fit them.
        on_calibration = 0 if is_coded or not num_uniform else num_uniform + 1
        return cls(compared, len(candidates) - num_uniform, on_calibration)
