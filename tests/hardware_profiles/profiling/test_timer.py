"""Timing programs in turns, with clocks that the test moves."""

import os
from collections.abc import Iterator
from math import comb
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from mpq._support.journal import Journal
from mpq.errors import InputError, MeasurementError
from mpq.hardware_profiles.profiling.interval import median_interval
from mpq.hardware_profiles.profiling.timer import WARM_UP, Timer, pinned


class Clocks:
    """Clocks that stand still but for what a program takes."""

    def __init__(self) -> None:
        self.cpu = self.wall = 1_000_000
        self.runs: list[str] = []

    def timer(self, rounds: int = 10, max_interval: float = 0.1, **options: Any) -> Timer:
        return Timer(
            rounds, max_interval, cpu_ns=lambda: self.cpu, wall_ns=lambda: self.wall, **options
        )

    def program(self, name: str, cpu_us: Iterator[int] | int, wall_us: int = 1) -> Any:
        """Takes the next of the given times whenever it runs, once the warm-up is over."""
        calls = 0

        def run() -> None:
            nonlocal calls
            calls += 1
            self.runs.append(name)
            taken = cpu_us if isinstance(cpu_us, int) else (next(cpu_us) if calls > WARM_UP else 0)
            self.cpu += 1000 * taken
            self.wall += 1000 * (taken + wall_us)

        return run


class Kept(dict[str, Any]):
    """Rounds in memory, with what was kept in this run."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def add(self, name: str, row: Any) -> None:
        self[name] = row
        self.new.append(name)


@pytest.fixture
def clocks() -> Clocks:
    """Both at the same time."""
    return Clocks()


def smallest_below(count: int) -> int:
    """The largest rank ``r`` that the median of ``count`` lies below with chance at most 2.5 %."""
    chance, rank = 0.0, 0
    while chance + comb(count, rank) / 2**count <= 0.025:
        chance += comb(count, rank) / 2**count
        rank += 1
    return max(rank, 1)


@pytest.mark.parametrize("count", [10, 11, 25, 60, 61, 200])
def test_interval_ends_are_order_statistics(count: int) -> None:
    """Those that the binomial distribution gives, counted from both ends."""
    seconds = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))

    found = median_interval(seconds, wall_s=0.5)

    rank = smallest_below(count)
    assert (found.low_s, found.high_s) == (rank, count + 1 - rank)
    assert found.median_s == (count + 1) / 2
    assert found.half_width_s == (count + 1 - 2 * rank) / 2
    assert (found.wall_s, found.runs) == (0.5, count)


@pytest.mark.parametrize("count", [10, 60])
def test_interval_has_the_true_median_19_times_in_20(count: int) -> None:
    """Of a skewed distribution; a little oftener, as ranks are whole numbers."""
    rng = np.random.default_rng(0)

    found = [median_interval(rng.lognormal(size=count), 1.0) for _ in range(1500)]

    share = np.mean([x.low_s <= 1.0 <= x.high_s for x in found])  # the median of exp(normal) is 1
    assert 0.94 <= share <= 0.985


def test_drift_is_the_second_half_over_the_first() -> None:
    """In the order of the rounds."""
    found = median_interval(np.array([2.0] * 30 + [3.0] * 30), 1.0)

    assert found.drift == pytest.approx(0.5)


def test_measures_the_chosen_clock(clocks: Clocks) -> None:
    """Medians of processor or wall time; the wall clock's is there in both."""
    runs = {"a": clocks.program("a", 300, wall_us=100)}

    by_cpu = clocks.timer().measure(runs, [["a"]], Kept(), "x")["a"]
    by_wall = clocks.timer(clock="wall").measure(runs, [["a"]], Kept(), "x")["a"]

    assert (by_cpu.median_s, by_cpu.wall_s) == pytest.approx((300e-6, 400e-6))
    assert (by_wall.median_s, by_wall.wall_s) == pytest.approx((400e-6, 400e-6))


def test_warm_up_is_not_counted(clocks: Clocks) -> None:
    """Every program runs before the first round, and once in each."""
    runs = {name: clocks.program(name, iter(range(100, 110))) for name in "ab"}

    found = clocks.timer(max_interval=1).measure(runs, [["a"], ["b"]], Kept(), "x")

    assert clocks.runs[: 2 * WARM_UP] == ["a"] * WARM_UP + ["b"] * WARM_UP
    assert clocks.runs.count("a") == clocks.runs.count("b") == WARM_UP + 10
    assert found["a"].median_s == pytest.approx(104.5e-6)


def test_groups_run_in_their_order_and_come_in_another(clocks: Clocks) -> None:
    """As the layers of a network do; no precision is always first."""
    groups = [["a", "b", "c"], ["d", "e"], ["f"]]
    runs = {name: clocks.program(name, 10) for group in groups for name in group}

    clocks.timer(20).measure(runs, groups, Kept(), "x")

    timed = clocks.runs[len(runs) * WARM_UP :]
    rounds = ["".join(timed[i : i + 6]) for i in range(0, len(timed), 6)]
    assert all("abc" in text and "de" in text and "f" in text for text in rounds)
    assert len({text[0] for text in rounds}) == 3


@pytest.mark.parametrize(("cpu_us", "wall_us"), [(-5, 100), (5, -100), (5, -5)])
def test_clock_that_goes_backwards_is_refused(clocks: Clocks, cpu_us: int, wall_us: int) -> None:
    """A clock that was set while a program ran; one that stands still at least moves none."""
    runs = {"layer at w8a8": clocks.program("layer", cpu_us, wall_us)}

    with pytest.raises(MeasurementError, match="layer at w8a8: a clock went backwards"):
        clocks.timer().measure(runs, [[*runs]], kept := Kept(), "x")
    assert not kept


def test_noise_is_refused_by_the_worst_program(clocks: Clocks) -> None:
    """Two of three are too wide; the widest is named, with what it is known to."""
    runs = {
        "calm": clocks.program("calm", 1000),
        "noisy": clocks.program("noisy", iter([1000, 1500] * 5)),
        "noisier": clocks.program("noisier", iter([1000, 3000] * 5)),
    }

    with pytest.raises(MeasurementError, match="2 of 3 .* 10.0%; the worst, noisier, .* 50.0%"):
        clocks.timer().measure(runs, [[*runs]], kept := Kept(), "x")
    assert len(kept) == 10


def test_what_is_below_the_resolution_is_accepted(clocks: Clocks) -> None:
    """Half a microsecond more or less is no noise; 3 are, if the resolution is 2."""
    short = {"short": clocks.program("short", iter([1, 2] * 5))}
    long = {"long": clocks.program("long", iter([1, 7] * 5))}

    found = clocks.timer().measure(short, [["short"]], Kept(), "x")

    assert found["short"].median_s == pytest.approx(1.5e-6)
    with pytest.raises(MeasurementError, match="long"):
        clocks.timer().measure(long, [["long"]], Kept(), "x")


def test_clock_that_mostly_stands_still_is_noise(clocks: Clocks) -> None:
    """A median of 0 has no relative width."""
    runs = {"coarse": clocks.program("coarse", iter([0] * 6 + [16000] * 4))}

    with pytest.raises(MeasurementError, match="coarse"):
        clocks.timer().measure(runs, [["coarse"]], Kept(), "x")


def test_a_machine_that_slows_down_is_refused(clocks: Clocks) -> None:
    """Each half is steady and the interval narrow, but the second half takes twice the first."""
    times = iter([100] * 40 + [200] * 39)
    kept = Kept()

    with pytest.raises(MeasurementError, match=r"the second half took \+100.0% more"):
        clocks.timer(rounds=79, max_interval=0.9).measure(
            {"slow": clocks.program("slow", times)}, [["slow"]], kept, "x"
        )


class Interrupted:
    """A journal that is stopped by the keyboard after so many rounds."""

    def __init__(self, journal: Journal, count: int) -> None:
        self._journal, self._left = journal, count

    def __contains__(self, name: str) -> bool:
        return name in self._journal

    def __getitem__(self, name: str) -> Any:
        return self._journal[name]

    def add(self, name: str, row: Any) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._journal.add(name, row)
        self._left -= 1


def test_finished_rounds_are_not_run_again(clocks: Clocks, tmp_path: Path) -> None:
    """A journal of 4 of 10 rounds: 6 remain, and the median is that of all."""
    key, path = {"a": "b"}, tmp_path / "rounds"
    journal = Journal(path, key)
    runs = {"a": clocks.program("a", iter(range(100, 110)))}
    with pytest.raises(KeyboardInterrupt):
        clocks.timer(max_interval=1).measure(runs, [["a"]], Interrupted(journal, 4), "x")
    clocks.runs.clear()
    again = {"a": clocks.program("a", iter(range(104, 110)))}
    journal = Journal(path, key)

    found = clocks.timer(max_interval=1).measure(again, [["a"]], journal, "x")

    assert len(clocks.runs) == WARM_UP + 6
    assert found["a"].median_s == pytest.approx(104.5e-6)
    assert found["a"].runs == 10


def test_more_rounds_go_on_with_the_first(clocks: Clocks) -> None:
    """A measurement that was too noisy is continued, not repeated; another label is another."""
    runs = {"a": clocks.program("a", 50)}
    clocks.timer(10).measure(runs, [["a"]], kept := Kept(), "layers")
    kept.new.clear()

    clocks.timer(15).measure(runs, [["a"]], kept, "layers")
    clocks.timer(10).measure(runs, [["a"]], kept, "networks")

    assert kept.new[:5] == [f"layers, round {i}" for i in range(10, 15)]
    assert kept.new[5:] == [f"networks, round {i}" for i in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 9}, "at least 10 rounds"),
        ({"max_interval": 0.0}, "above 0"),
        ({"max_interval": float("nan")}, "above 0"),
        ({"clock": "sun"}, "one of cpu, wall; got 'sun'"),
    ],
)
def test_impossible_timer_is_refused(options: dict[str, Any], message: str) -> None:
    """Before anything is run."""
    with pytest.raises(InputError, match=message):
        Timer(**{"rounds": 10, "max_interval": 0.1, **options})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_ends_with_the_block() -> None:
    """One processor within; all of them afterwards, also after an error."""
    before = os.sched_getaffinity(0)

    with pinned(1):
        within = os.sched_getaffinity(0)
    after = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), pinned(1):
        _ = 1 / 0

    assert within == {max(before)}
    assert after == os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_threads_started_within_are_pinned_and_others_are_not() -> None:
    """As the docstring says: only the calling thread is moved, and what it starts inherits."""
    allowed: dict[str, set[int]] = {}
    is_pinned = Event()

    def look(name: str) -> None:
        is_pinned.wait()
        allowed[name] = os.sched_getaffinity(0)

    before = os.sched_getaffinity(0)
    earlier = Thread(target=look, args=("earlier",))
    earlier.start()
    with pinned(1):
        later = Thread(target=look, args=("later",))
        later.start()
        is_pinned.set()
        later.join()
        earlier.join()

    assert allowed == {"earlier": before, "later": {max(before)}}


def test_nothing_is_pinned_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)

    with pinned(1):
        pass
