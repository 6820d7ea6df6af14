"""What a tuning will take, told from its first steps."""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Final, TypeVar, final

from mpq.callbacks.plans import tell_plan

Step = TypeVar("Step")
TUNING: Final = "tuning"
_AFTERWARDS: Final = 4
"""Measurements after the last epoch, which decide and are told."""


@final
class Pace:
    """Tells ``Planned`` after the second step of the first epoch; the first one is slow.

    It is what all epochs take: where one after another loses no less, it ends before.

    Args:
        num_epochs: That are to come, of all stages.
        measure_s: Seconds of a measurement after an epoch; 0: not known.
    """

    def __init__(self, num_epochs: int, measure_s: float) -> None:
        self._num_epochs, self._measure_s = num_epochs, measure_s
        self._is_told = False

    def stepping(self, steps: Sequence[Step]) -> Iterator[Step]:
        """The steps of an epoch."""
        for number, step in enumerate(steps, start=1):
            start = perf_counter()
            yield step
            if not self._is_told and number == min(2, len(steps)):
                self._is_told = True
                self._tell((perf_counter() - start) * len(steps))

    def _tell(self, epoch_s: float) -> None:
        count = self._num_epochs
        tell_plan({}, {TUNING: count * epoch_s + (count + _AFTERWARDS) * self._measure_s})
