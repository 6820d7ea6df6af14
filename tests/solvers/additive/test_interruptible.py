"""Ctrl-C in the middle of a solver that is no Python."""

import os
import signal
import subprocess
import time
from threading import Timer
from threading import enumerate as threads
from typing import Any

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.additive.pulp_backend import available_backends

PRECISIONS = tuple(Precision.parse(f"w{bits}") for bits in (2, 3, 4, 6, 8))
NAMES = tuple(f"layer {i}" for i in range(120))


def hard() -> Problem:
    """Four budgets that the loss goes against: minutes, or hours."""
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.integers(10, 1000, (120, 5)), axis=1).astype(float) for _ in range(4)]
    loss = -sum(costs) / 1000 + 0.01 * rng.random((120, 5))

    def table(name: str, unit: str, values: Any) -> CostTable:
        return CostTable(name=name, unit=unit, layers=NAMES, precisions=PRECISIONS, values=values)

    tables = [table(f"r{i}", "units", x) for i, x in enumerate(costs)]
    budgets = [Budget.of(each, float(int(96 * each.values.mean()))) for each in tables]
    return Problem(table("loss", "nats", loss - loss.min()), Constraints(tuple(budgets)))


@pytest.mark.parametrize("backend", available_backends())
def test_a_solver_is_interrupted(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and no thread or process of it goes on."""
    started: list[Any] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    # A signal, and not `interrupt_main`, which wakes nobody who waits for a process.
    # Processes of pytest-xdist ignore it, and the solver would go on for hours.
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    before, timer = set(threads()), Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    problem, solver = hard(), IntegerLinearProgram(time_limit_s=60.0, backend=backend)
    timer.start()

    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            solver.solve(problem)
    finally:
        signal.signal(signal.SIGINT, kept)

    assert time.monotonic() - start < 30
    timer.join()
    assert not any(thread.is_alive() for thread in set(threads()) - before)
    assert [process.poll() is not None for process in started] == [True] * len(started)
    assert (backend == "CBC") == bool(started)
