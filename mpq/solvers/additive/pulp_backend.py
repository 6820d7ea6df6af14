"""The one place that knows how PuLP calls HiGHS and CBC."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self, final

import pulp

from mpq._support.ended_processes import ended_if_interrupted
from mpq._support.streams import stdout_discarded, stdout_silenced
from mpq.errors import MissingDependencyError, SolverError, UnknownNameError
from mpq.solvers.additive.interruptible import InterruptibleHiGHS

BACKENDS = ("HiGHS", "CBC")
"""Solvers that PuLP may call, in order of preference."""
TOLERANCE = 1e-9
"""Feasibility and integrality tolerance asked of HiGHS (its default is 1e-6)."""
_LOOSER = 1e-7
"""Asked of HiGHS where it contradicts what is known: it takes other cuts and branches then."""


@final
@dataclass(frozen=True)
class Way:
    """How a program is solved.

    Args:
        backend: One of ``available_backends()``.
        presolve: Whether the backend may shrink the program first.
        tolerance: Of HiGHS.
    """

    backend: str
    presolve: bool = True
    tolerance: float = TOLERANCE

    @property
    def tells_bound(self) -> bool:
        """Whether a search that stops early says what it proved; CBC's does not pass PuLP."""
        return self.backend == "HiGHS"

    def others(self) -> Iterator[Self]:
        """Ways that share as little as possible with this one, the most alike first."""
        yield replace(self, presolve=False)
        if self.backend == "HiGHS":
            yield replace(self, tolerance=_LOOSER)
        for backend in available_backends():
            if backend != self.backend:
                yield replace(self, backend=backend)


def available_backends() -> tuple[str, ...]:
    """Those of ``BACKENDS`` that are installed."""
    named = {"HiGHS": "HiGHS", "PULP_CBC_CMD": "CBC", "COIN_CMD": "CBC"}
    found = {named[n] for n in pulp.listSolvers(onlyAvailable=True) if n in named}
    return tuple(backend for backend in BACKENDS if backend in found)


def check_backend(wanted: str) -> None:
    """Refuses a name that is none.

    Raises:
        UnknownNameError: If there is no such backend.
    """
    if wanted not in ("auto", *BACKENDS):
        raise UnknownNameError("MILP backend", wanted, ("auto", *BACKENDS))


def chosen_backend(wanted: str = "auto") -> str:
    """The backend of that name; ``auto``: HiGHS where it is installed, else CBC.

    Raises:
        UnknownNameError: If there is no such backend.
        MissingDependencyError: If it is not installed.
    """
    check_backend(wanted)
    backends = available_backends()
    if wanted in backends or (wanted == "auto" and backends):
        return backends[0] if wanted == "auto" else wanted
    pip = "pip install 'mpq[cbc]'" if wanted == "CBC" else "pip install highspy"
    raise MissingDependencyError(
        f"no MILP solver {wanted!r} is installed (there are: "
        f"{', '.join(backends) or 'none'}); {pip}"
    )


def run(
    model: Any,
    way: Way,
    time_limit_s: float | None = None,
    relative_gap: float = 0.0,
    warm_start: bool = False,
    absolute_gap: float = 0.0,
) -> float | None:
    """Solves a PuLP model in place, on one thread.

    Args:
        model: ``pulp.LpProblem``; minimised.
        way: How; its backend is installed.
        time_limit_s: Wall time in seconds, or ``None``.
        relative_gap: Between incumbent and bound at which to stop.
        warm_start: Whether the variables' values are a solution to begin with.
        absolute_gap: The same in units of the model's objective.

    Returns:
        The proved lower bound of the model's objective, or ``None``.

    Raises:
        SolverError: If the backend fails.
    """
    solver = _solver(way, time_limit_s, (relative_gap, absolute_gap), warm_start)
    if way.backend == "HiGHS":
        _greet()
    try:
        with stdout_silenced(), ended_if_interrupted(solver):
            model.solve(solver)
    except pulp.PulpSolverError as error:
        raise SolverError(f"{way.backend} failed: {error}") from error
    except IndexError as error:  # PuLP reads as many rows as it gave
        raise SolverError(
            f"{way.backend} has fewer rows than the model: it refuses numbers that are too large"
        ) from error
    return _bound(model, way.backend, is_exact=not (relative_gap or absolute_gap))


@cache
def _greet() -> None:
    """HiGHS prints its banner when its first object is made, before `msg` can silence it."""
    import highspy

    with stdout_discarded():
        highspy.Highs()


def _solver(
    way: Way, time_limit_s: float | None, gaps: tuple[float, float], warm_start: bool
) -> Any:
    common = {"msg": False, "gapRel": gaps[0], "gapAbs": gaps[1], "threads": 1}
    if way.backend == "HiGHS":
        solver = InterruptibleHiGHS(
            **common,
            timeLimit=time_limit_s,
            # Keywords that PuLP does not know it hands to HiGHS, by the names of its options.
            random_seed=0,
            presolve="choose" if way.presolve else "off",
            primal_feasibility_tolerance=way.tolerance,
            dual_feasibility_tolerance=way.tolerance,
            mip_feasibility_tolerance=way.tolerance,
        )
        solver.is_warm = warm_start
        return solver
    options: dict[str, Any] = {**common, "timeLimit": time_limit_s, "warmStart": warm_start}
    if not way.presolve:
        options["options"] = ["presolve off", "preprocess off"]
    if "COIN_CMD" in pulp.listSolvers(onlyAvailable=True):
        return pulp.getSolver("COIN_CMD", **options)
    with warnings.catch_warnings():  # PuLP 3 carries CBC and says at each use that PuLP 4 will not
        warnings.simplefilter("ignore", DeprecationWarning)
        return pulp.getSolver("PULP_CBC_CMD", **options)


def _bound(model: Any, backend: str, is_exact: bool) -> float | None:
    if Way(backend).tells_bound:
        bound = float(model.solverModel.getInfo().mip_dual_bound)
        return bound if math.isfinite(bound) else None
    # CBC's own bound does not come through PuLP: only a finished search proves something.
    if model.sol_status != pulp.LpSolutionOptimal or not is_exact:
        return None
    return float(pulp.value(model.objective) or 0.0)
