"""One mixed-integer linear program through PuLP: scaled before, read honestly after."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pulp

from mpq.budget import ROUNDING
from mpq.problem import Choice
from mpq.solvers.backend import run

OBJECTIVE_SCALE = 1e3
"""The largest difference that a choice makes to the scaled objective. Solvers work with absolute
tolerances: at sensitivities around 1e-6, CBC and HiGHS both call wrong answers optimal. With 1e6,
HiGHS at these tolerances proves next to nothing on 400 layers and three budgets."""


@final
@dataclass(frozen=True, eq=False)
class Program:
    """Choose one column per row: minimise ``objective`` while every cost stays within its limit.

    Args:
        objective: ``[G, B]``.
        costs: ``[R, G, B]``.
        limits: ``[R]``.
        allowed: ``[G, B]``.
    """

    objective: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    allowed: npt.NDArray[np.bool_]


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What the solver says of a ``Program``.

    Args:
        choice: ``[G]``, or ``None``.
        bound: Proved lower bound of the objective, or ``None``.
        is_optimal: Whether it claims to have finished.
        is_infeasible: Whether it claims that there is no choice.
    """

    choice: Choice | None
    bound: float | None
    is_optimal: bool
    is_infeasible: bool


def solve_program(
    program: Program,
    backend: str,
    time_limit_s: float | None,
    excluded: list[Choice],
    margin: float = 0.0,
) -> Answer:
    """Solves one program to a gap of zero.

    Args:
        program: What to solve.
        backend: One of ``available_backends()``.
        time_limit_s: Wall time in seconds, or ``None``.
        excluded: Choices ``[G]`` that are not wanted as the answer.
        margin: How far inside each limit to stay, relative to its free range.

    Raises:
        SolverError: If the backend ends in a way that is none of the expected ones.
    """
    scaled = _scaled(program)
    model, variables = _model(scaled, excluded, margin)
    if model is None:
        return Answer(None, None, is_optimal=False, is_infeasible=True)
    bound = run(model, backend, time_limit_s)
    return _read(model, variables, scaled, bound)


@final
@dataclass(frozen=True, eq=False)
class _Scaled:
    objective: npt.NDArray[np.float64]  # [G, B], from 0 to OBJECTIVE_SCALE
    offset: float
    factor: float
    costs: npt.NDArray[np.float64]  # [R, G, B], from 0, in units of what the limit leaves free
    usable: npt.NDArray[np.bool_]  # [G, B], False where a cell alone overruns a limit


def _scaled(program: Program) -> _Scaled:
    # Every group takes exactly one column, so that its smallest entry can be taken off both sides.
    floor = np.where(program.allowed, program.objective, np.inf).min(axis=1)
    rise = np.where(program.allowed, program.objective - floor[:, None], 0.0)
    factor = OBJECTIVE_SCALE / rise.max() if rise.max() > 0 else 1.0
    cost_floor = np.where(program.allowed, program.costs, np.inf).min(axis=2)  # [R, G]
    excess = np.where(program.allowed, program.costs - cost_floor[:, :, None], 0.0)
    floors = np.array([math.fsum(row.tolist()) for row in cost_floor])
    # What is free is compared as `Budget.is_met` compares it, not with the solver's tolerance.
    free = program.limits - floors + ROUNDING * np.abs(program.limits)
    usable = program.allowed & (excess <= free[:, None, None]).all(axis=0)
    unit = np.where(free > 0, free, 1.0)[:, None, None]
    offset = math.fsum(floor.tolist())
    return _Scaled(rise * factor, offset, factor, excess / unit, usable)


def _model(
    scaled: _Scaled, excluded: list[Choice], margin: float
) -> tuple[Any, dict[tuple[int, int], Any]]:
    usable = scaled.usable
    if not usable.any(axis=1).all():
        return None, {}
    cells = [(int(g), int(b)) for g, b in zip(*np.nonzero(usable), strict=True)]
    model = pulp.LpProblem("assignment", pulp.LpMinimize)
    x = {cell: model.add_variable(f"x_{cell[0]}_{cell[1]}", 0, 1, "Integer") for cell in cells}
    model += pulp.LpAffineExpression([(x[c], float(scaled.objective[c])) for c in cells])
    for group in range(len(usable)):
        columns = np.flatnonzero(usable[group]).tolist()
        model += pulp.LpAffineExpression([(x[group, b], 1.0) for b in columns]) == 1
    for costs in scaled.costs:
        terms = [(x[c], float(costs[c])) for c in cells if costs[c] > 0]
        if terms:
            model += pulp.LpAffineExpression(terms) <= 1.0 - margin
    for choice in excluded:
        same = [(x[g, b], 1.0) for g, b in enumerate(choice.tolist()) if (g, b) in x]
        model += pulp.LpAffineExpression(same) <= len(choice) - 1
    return model, x


def _read(
    model: Any, variables: dict[tuple[int, int], Any], scaled: _Scaled, bound: float | None
) -> Answer:
    # `status` is "Optimal" even at a time limit; `sol_status` tells the two apart.
    optimal = model.sol_status == pulp.LpSolutionOptimal
    if model.sol_status == pulp.LpSolutionInfeasible:
        return Answer(None, None, is_optimal=False, is_infeasible=True)
    values = {cell: variable.varValue for cell, variable in variables.items()}
    if bound is not None:
        bound = float(bound / scaled.factor + scaled.offset)
    groups = len(scaled.objective)
    if any(value is None for value in values.values()):
        return Answer(None, bound, is_optimal=False, is_infeasible=False)
    table = np.zeros((groups, scaled.objective.shape[1]))
    for cell, value in values.items():
        table[cell] = value
    if not np.allclose(table.max(axis=1), 1.0, atol=1e-4):  # stopped before a first solution
        return Answer(None, bound, is_optimal=False, is_infeasible=False)
    return Answer(table.argmax(axis=1), bound, optimal, is_infeasible=False)
