"""Plans of long work, by whoever makes them."""

import pytest

from mpq._support.events import listening
from mpq._support.phases import Phases
from mpq._support.rows import Memory
from mpq.callbacks import Planned
from mpq.callbacks.plans import is_plan_wanted, planned_as_whole, tell_plan
from mpq.hardware_profiles.profiling.profile import Profiling
from mpq.hardware_profiles.profiling.runtimes import RUNTIMES
from mpq.hardware_profiles.profiling.timer import WARM_UP, Timer
from mpq.quantization.ranges import Ranges
from mpq.tuning import pace
from mpq.tuning.pace import Pace
from tests.callbacks.listeners import Kept


def test_short_work_tells_none() -> None:
    """An upper bound counts as long, since it may be."""
    kept = Kept()
    with listening([kept]):
        tell_plan({"a": 1.0}, {"b": 0.5})
        tell_plan({"a": 1.0}, {"b": 1.5}, ["c"])

    assert kept.of(Planned) == [Planned({"a": 1.0}, 1.0, ("c",), {"b": 1.5})]


def test_parts_of_planned_work_tell_none() -> None:
    """Nor does anybody whom nobody hears; what counts phases reads no plan."""
    kept = Kept()
    assert not is_plan_wanted()
    with listening([Phases()]):
        assert not is_plan_wanted()
    with listening([kept]):
        with planned_as_whole():
            with planned_as_whole():
                tell_plan({"a": 9.0})
            tell_plan({"a": 9.0})
        tell_plan({"b": 9.0})

    assert [list(plan.phases) for plan in kept.of(Planned)] == [["b"]]


def test_a_tuning_is_planned_after_its_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All epochs of so many steps, a measurement after each, and four in the end."""
    clock = [0.0]
    monkeypatch.setattr(pace, "perf_counter", lambda: clock[0])
    kept, tuning = Kept(), Pace(5, 1.0)

    with listening([kept]):
        for _ in range(2):
            for seconds in tuning.stepping([9.0, 2.0, 7.0]):
                clock[0] += seconds

    assert [plan.at_most for plan in kept.of(Planned)] == [{"tuning": 5 * 3 * 2.0 + 9 * 1.0}]


def test_a_profile_is_planned_after_its_first_round() -> None:
    """Rounds that are rows already are not to come; networks are run in as many."""
    kept, rows = Kept(), Memory()
    for number in range(4):
        rows.add(f"layers, round {number}", {})
    profiling = Profiling(RUNTIMES.build("onnxruntime"), Timer(10, 0.1), 3, 1, Ranges(), None, 0)

    with listening([kept]):
        profiling._tell_plan(rows, 2, 5.0, 0.5)

    (plan,) = kept.of(Planned)
    assert plan.phases == {"layers": 6 * 5.0, "networks": (3 + 2) * (10 + WARM_UP) * 0.5}
    assert plan.besides == ("compiling networks",)
