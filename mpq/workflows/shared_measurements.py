"""An assignment measured by all ranks of ``torchrun``, each on its own batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, final

from mpq._support.ranks import Ranks
from mpq.errors import MpqError
from mpq.quantization.precision import Precision
from mpq.workflows.sums import Sums

HELD_OUT: Final = "held out"
CALIBRATION: Final = "calibration"

Asked = tuple[str, Mapping[str, Precision]]
"""Which examples, and layer to precision."""


@final
@dataclass(frozen=True)
class SharedMeasurements:
    """What the first rank asks all of them for, itself included.

    Args:
        ranks: Who measures.
        examples: ``HELD_OUT`` or ``CALIBRATION``, by which the others know them.
    """

    ranks: Ranks
    examples: str

    @classmethod
    def of(cls, ranks: Ranks | None, examples: str, num_batches: int) -> Self | None:
        """``None`` where nobody measures with this process, or some would have no batch."""
        return None if ranks is None or num_batches < ranks.size else cls(ranks, examples)

    @property
    def is_open(self) -> bool:
        """Whether the others wait to be asked."""
        return self.ranks.is_leading

    def sums(self, precisions: Mapping[str, Precision]) -> Sums:
        """As one process adds up, in the order of batches.

        Raises:
            MpqError: What a measurement raised, as if it had been made here.
        """
        found = self.ranks.ask((self.examples, precisions))
        for failure in found:
            if isinstance(failure, MpqError):
                raise failure
        return Sums.joined(found)
