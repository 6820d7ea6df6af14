"""Times of many programs, taken in turns, so that a drift of the machine meets all of them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import final

import numpy as np
import numpy.typing as npt

from mpq._support.progress import track
from mpq._support.rows import Rows, remember
from mpq.errors import InputError, MeasurementError
from mpq.hardware_profiles.profiling.interval import Interval, median_interval

WARM_UP = 3
"""Runs that are not counted: the first ones fill caches and let runtimes pick and pack kernels."""
CLOCKS = ("cpu", "wall")


@final
@dataclass(frozen=True)
class Timer:
    """How long and how surely something is timed.

    Args:
        rounds: In each, every program runs once.
        max_interval: Half width of a median's 95 % interval, relative to the median, that is
            accepted.
        clock: ``cpu``: processor time of this process, which other work on the machine hardly
            touches; ``wall``: what passes by the clock, for several threads.
        resolution_s: Half widths below this are accepted whatever the median is.
        cpu_ns: Processor time, in nanoseconds.
        wall_ns: Time that passes, in nanoseconds.

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
    ) -> dict[str, Interval]:
        """Median seconds of every program, with its interval.

        A group is run through in its order, so that caches are as they are when its programs
        follow each other in one network; groups come in another order in every round.

        Args:
            programs: What is run, by name.
            groups: Names; every program is in one group at least.
            rows: Finished rounds, also those of an earlier run, by name.
            label: Names of rounds begin with it.

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
            row = remember(rows, name, partial(self._round, programs, groups, number))
            for program, pair in row.items():
                samples[program].append((float(pair[0]), float(pair[1])))
        found = {name: self._summary(np.array(pairs)) for name, pairs in samples.items()}
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
        Random(number).shuffle(order)
        return {name: self._once(name, programs[name]) for group in order for name in group}

    def _once(self, name: str, run: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one run: processor, wall."""
        wall, cpu = self.wall_ns(), self.cpu_ns()
        run()
        cpu, wall = self.cpu_ns() - cpu, self.wall_ns() - wall
        if cpu < 0 or wall <= 0:
            raise MeasurementError(
                f"{name}: a clock went backwards ({wall} ns by the wall clock, {cpu} ns of the "
                "processor); measure again, on a machine whose clock is not being set"
            )
        return cpu * 1e-9, wall * 1e-9

    def _summary(self, pairs: npt.NDArray[np.float64]) -> Interval:
        column = CLOCKS.index(self.clock)
        return median_interval(pairs[:, column], float(np.median(pairs[:, 1])))

    def _check(self, found: Mapping[str, Interval]) -> None:
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
        change = sum(interval.drift * interval.median_s for interval in found.values())
        if abs(change) > max(self.max_interval * total, self.resolution_s * len(found)):
            raise MeasurementError(
                f"the machine's speed changed while it was measured: the second half took "
                f"{change / total:+.1%} more than the first; {self.max_interval:.1%} are accepted. "
                "Measure again when its load and its clock are steady"
            )


@contextmanager
def pinned(num_threads: int) -> Iterator[None]:
    """Keeps this process on the last ``num_threads`` processors that it may use; then as before.

    Where the system cannot pin, nothing is done.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-num_threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
