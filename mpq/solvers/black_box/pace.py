"""How many trials still fit into a time limit."""

import math
import time
from typing import final


@final
class Pace:
    """A clock that begins when it is made: what a search by trials asks before each of them.

    A trial that has begun is finished, and the first one is always made, so that there is an
    answer. Trials of a batch that would end after the limit are not begun, as far as the ones
    before tell.

    Args:
        time_limit_s: Wall time in seconds, or ``None``: as long as it takes.
    """

    def __init__(self, time_limit_s: float | None) -> None:
        limit = math.inf if time_limit_s is None else time_limit_s
        self._deadline = time.perf_counter() + limit
        self._seconds_each: float | None = None
        self.was_stopped = False

    def stops(self, num_trials: int) -> bool:
        """Whether no trial may begin any more, after so many."""
        self.was_stopped = num_trials > 0 and time.perf_counter() >= self._deadline
        return self.was_stopped

    @property
    def num_fitting(self) -> int | None:
        """How many may be made at once; ``None``: any number."""
        if math.isinf(self._deadline):
            return None
        # Of a single one nobody knows yet how long it takes: a whole batch could be hours.
        if self._seconds_each is None:
            return 1
        left = self._deadline - time.perf_counter()
        return max(1, int(left / max(self._seconds_each, 1e-9)))

    def took(self, seconds: float, num_trials: int) -> None:
        """Remembers how long some trials took together."""
        self._seconds_each = seconds / num_trials
