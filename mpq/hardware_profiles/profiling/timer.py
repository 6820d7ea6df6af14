"""Times of many programs, taken in turns, so that a drift of the machine meets all of them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from mpq._support.bounds import check_whole
from mpq._support.progress import track
from mpq._support.rows import Rows, remember
from mpq.errors import InputError, MeasurementError
from mpq.hardware_profiles.profiling.interval import Interval, median_interval

WARM_UP = 3
"""Runs that are not counted: the first ones fill caches and let runtimes pick and pack kernels."""
CLOCKS = ("cpu", "wall")
Round: TypeAlias = Mapping[str, Sequence[float]]
"""Program to its seconds in one round: processor, wall."""


@final
@dataclass(frozen=True)
class Timer:
    """How long, and with which confidence, something is timed.

    Args:
        rounds: In each, every program runs once.
        max_interval: Half width of a median's 95 % interval, relative to the median, that is
            accepted.
        clock: ``cpu``: processor time of this process, which other work on the machine hardly
            touches; ``wall``: what passes by the clock, for several threads.
        resolution_s: Half widths below this are accepted whatever the median is.
        cpu_ns: Clock of this process's processor time, in nanoseconds; tests move their own.
        wall_ns: Clock of the time that passes, in nanoseconds.

    Raises:
        InputError: If there are fewer than 10 rounds, or the clock is unknown.
    """

    rounds: int
    max_interval: float
    clock: str = "cpu"
    resolution_s: float = 2e-6
    cpu_ns: Callable[[], int] = time.process_time_ns
    wall_ns: Callable[[], int] = time.perf_counter_ns

    def __post_init__(self) -> None:
        check_whole("rounds", self.rounds)
        # Fewer than 6 times have no interval of 95 %, as 2 / 2**5 is above 5 %; 10 leave room for
        # two halves to tell a drift. `not ... > 0` refuses nan too.
        if self.rounds < 10 or not self.max_interval > 0:
            raise InputError(
                "a measurement has at least 10 rounds and an accepted interval above 0; got "
                f"{self.rounds} and {self.max_interval}"
            )
        if self.clock not in CLOCKS:
            raise InputError(f"the clock is one of {', '.join(CLOCKS)}; got {self.clock!r}")

    def measure(
        self,
        programs: Mapping[str, Callable[[], object]],
        groups: Sequence[Sequence[str]],
        rows: Rows,
        label: str,
        told: Callable[[Round], None] = lambda _: None,
    ) -> dict[str, Interval]:
        """Median seconds of every program, with its interval.

        A group is run through in its order, so that caches are as they are when its programs
        follow each other in one network; groups come in another order in every round.

        Args:
            programs: What is run, by name.
            groups: Names; every program is in one group at least.
            rows: Finished rounds, also those of an earlier run, by name.
            label: Names of rounds begin with it.
            told: Is given the first round.

        Raises:
            MeasurementError: If a clock runs backwards, an interval is wider than accepted, or the
                machine became faster or slower by more than that.
        """
        for run in programs.values():
            for _ in range(WARM_UP):
                run()
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for number in track(range(self.rounds), f"timing {label}"):
            name = f"{label}, round {number}"
            # By the round's number, so that more rounds go on where fewer ended.
            row = remember(rows, name, partial(self._round, programs, groups, number))
            if number == 0:
                told(row)
            for program, pair in row.items():
                samples[program].append((float(pair[0]), float(pair[1])))
        found = {name: self._summary(np.array(pairs)) for name, pairs in samples.items()}
        # Last: the rounds are kept also if they are too noisy, and count when more are asked for.
        self._check(found)
        self._check_drift(found)
        return found

    def _round(
        self,
        programs: Mapping[str, Callable[[], object]],
        groups: Sequence[Sequence[str]],
        number: int,
    ) -> dict[str, tuple[float, float]]:
        order = list(groups)
        # Seeded by the round: a resumed measurement has the order that it would have had.
        Random(number).shuffle(order)
        return {name: self._once(name, programs[name]) for group in order for name in group}

    def _once(self, name: str, run: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one run: processor, wall."""
        # The processor's clock is the inner one: it is the default, and then reading the other is
        # not in what is measured.
        wall, cpu = self.wall_ns(), self.cpu_ns()
        run()
        cpu, wall = self.cpu_ns() - cpu, self.wall_ns() - wall
        # A processor clock with coarse ticks may stand still; a wall clock in nanoseconds does not.
        if cpu < 0 or wall <= 0:
            raise MeasurementError(
                f"{name}: a clock went backwards ({wall} ns by the wall clock, {cpu} ns of the "
                "processor); measure again, on a machine whose clock is not being set"
            )
        return cpu * 1e-9, wall * 1e-9

    def _summary(self, pairs: npt.NDArray[np.float64]) -> Interval:
        # `_once` returns its two times in the order of `CLOCKS`.
        column = CLOCKS.index(self.clock)
        return median_interval(pairs[:, column], float(np.median(pairs[:, 1])))

    def _check(self, found: Mapping[str, Interval]) -> None:
        # Relative to a few microseconds everything is noise, hence the absolute floor.
        wide = {
            name: interval.half_width_s / interval.median_s if interval.median_s else inf
            for name, interval in found.items()
            if interval.half_width_s > max(self.max_interval * interval.median_s, self.resolution_s)
        }
        if wide:
            worst = max(wide, key=lambda name: wide[name])
            raise MeasurementError(
                f"too noisy to measure: {len(wide)} of {len(found)} medians are less sure than "
                f"{self.max_interval:.1%}; the worst, {worst}, is known to {wide[worst]:.1%} after "
                f"{self.rounds} rounds. Stop other work on the machine, take more rounds, or "
                "accept a wider interval"
            )

    def _check_drift(self, found: Mapping[str, Interval]) -> None:
        total = sum(interval.median_s for interval in found.values())
        # Weighted by time: halves of a single short program differ by chance.
        change = sum(interval.drift * interval.median_s for interval in found.values())
        if abs(change) > max(self.max_interval * total, self.resolution_s * len(found)):
            raise MeasurementError(
                f"the machine's speed changed while it was measured: the second half took "
                f"{change / total:+.1%} more than the first; {self.max_interval:.1%} are accepted. "
                "Measure again when its load and its clock are steady"
            )


@contextmanager
def pinned(num_threads: int) -> Iterator[None]:
    """Keeps the calling thread on the last ``num_threads`` processors that it may use.

    Threads that it starts within the block inherit them, and keep them; those that run already are
    not moved. Afterwards the calling thread has the processors that it had before. Where the system
    cannot pin, nothing is done.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    # Containers and `taskset` allow fewer processors than there are.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-num_threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
