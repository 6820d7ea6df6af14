"""A problem as a mixed-integer linear program: scaled before, checked and read honestly after."""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pulp

from mpq._support.arrays import Columns, Mask
from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Status
from mpq.solvers.additive.marginal_gain import raised
from mpq.solvers.additive.pair_variables import Product, linearised_products
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.additive.pulp_backend import Way, run
from mpq.solvers.proofs import best_known, contradiction, rounding

OBJECTIVE_SCALE = 1e3
"""The largest difference that a choice makes to the scaled objective. Solvers work with absolute
tolerances: at sensitivities around 1e-6, CBC and HiGHS both call wrong answers optimal. With 1e6,
HiGHS at these tolerances proves next to nothing on 400 layers and three budgets."""
_MAX_CUTS = 20
"""Single answers cut off before all limits are drawn in: each costs one more program."""
_COARSE = 0.1
"""Share of the largest loss in a program: with less in it, it is worth solving once more."""
_MAX_GREEDY = 20_000
"""Cells up to which the greedy choice is made to know one: above, it takes seconds."""
_MARGIN = 1e-7
"""Retreat from every limit, in units of its free range, once cutting off single answers that break
a budget by a hair does not end: a hundred times the tolerance that HiGHS is asked to keep."""


@final
@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Args:
        way: How a program is solved; in another where that contradicts what is known.
        time_limit_s: Wall time in seconds for each program, or ``None``.
        relative_gap: At which to stop, of the loss above every row's smallest.
        absolute_gap: The same in the loss's unit.
    """

    way: Way
    time_limit_s: float | None = None
    relative_gap: float = 0.0
    absolute_gap: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What is known once a program was solved.

    Args:
        status: How it ended; the choice is within the budgets by the problem's own arithmetic.
        columns: ``[G]`` the choice, or ``None`` if none was found.
        bound: Proved lower bound of the loss, or ``None``.
    """

    status: Status
    columns: Columns | None
    bound: float | None


def solve_cells(
    problem: Problem, cells: Mask, effort: Effort, start: Columns | None = None
) -> Answer:
    """The best choice among some cells.

    An answer that breaks a budget by less than the backend's tolerance is cut off, and the program
    solved again. What is cut off is infeasible, so that what was proved without it holds.

    Cells that alone lose more than a choice that is known are left out: the backend's tolerances
    are relative to the largest that is left. Where the answer loses far less than that, the rest
    is solved again in its own scale.

    Args:
        problem: The problem, without interactions; its arithmetic checks every answer.
        cells: ``[G, B]`` to choose among.
        effort: How hard to try.
        start: ``[G]`` a choice to begin with; one that breaks a budget is left out.

    Raises:
        SolverError: If the backend fails, or contradicts what is known in whatever way it is asked.
    """
    reduced = Reduced.of(problem.grouped, cells)
    if reduced.overrun:
        return Answer(Status.INFEASIBLE, None, None)
    known = _best_of(problem, cells, start, _greedy(reduced))
    is_exact = not (effort.relative_gap or effort.absolute_gap)
    while True:
        if known is not None:
            reduced = _worthwhile(problem, reduced, known)
        answer = _believed(problem, reduced, effort, known)
        if answer.columns is None or answer.status is not Status.OPTIMAL or not is_exact:
            return answer
        fewer = _worthwhile(problem, reduced, answer.columns)
        if not fewer.highest < _COARSE * reduced.highest:
            return answer
        reduced, known = fewer, answer.columns


def _greedy(reduced: Reduced) -> Columns | None:
    """``[G]``; ``None`` where it would take longer than it helps."""
    return raised(reduced.at_worst) if reduced.rise.size <= _MAX_GREEDY else None


def _best_of(problem: Problem, cells: Mask, *choices: Columns | None) -> Columns | None:
    """``[G]`` of least loss among those of the choices that are feasible and among the cells."""
    groups = np.arange(len(cells))
    every = [choice for choice in choices if choice is not None]
    uniform = best_known(problem)
    if uniform is not None:
        every.append(uniform[[members[0] for members in problem.grouped.members]])
    found = [
        choice
        for choice in every
        if cells[groups, choice].all() and problem.is_feasible(problem.grouped.expand(choice))
    ]
    return min(found, key=lambda choice: _loss_of(problem, choice), default=None)


def _loss_of(problem: Problem, choice: Columns) -> float:
    return problem.loss_of(problem.grouped.expand(choice))


def _worthwhile(problem: Problem, reduced: Reduced, known: Columns) -> Reduced:
    """Without cells that alone lose more than a known choice ``[G]``."""
    slack = rounding(problem, problem.grouped.expand(known))
    most = _loss_of(problem, known) - reduced.offset + slack
    cells = reduced.usable & (reduced.rise <= most)
    fewer = Reduced.of(problem.grouped, cells)
    # The known choice, or one that betters it in everything, is left: only rounding could overrun.
    return reduced if fewer.overrun else fewer


def _believed(problem: Problem, reduced: Reduced, effort: Effort, known: Columns | None) -> Answer:
    """An answer that no known choice ``[G]`` contradicts; never worse than that choice.

    Raises:
        SolverError: If there is none in whatever way the program is solved.
    """
    expanded = None if known is None else problem.grouped.expand(known)
    unproved: Answer | None = None
    reasons = []
    for way in (effort.way, *effort.way.others()):
        answer = _within(problem, reduced, replace(effort, way=way), known)
        columns = None if answer.columns is None else problem.grouped.expand(answer.columns)
        wrong = contradiction(problem, answer.status, columns, answer.bound, expanded)
        if wrong:
            reasons.append(f"{way.backend}: {wrong}")
        elif _is_proved(problem, answer):
            return _no_worse(problem, answer, known)
        elif unproved is None:
            unproved = Answer(Status.FEASIBLE, answer.columns, answer.bound)
    if unproved is None:
        raise SolverError(
            f"the integer program is wrong in {len(reasons)} ways of solving it: {reasons[0]}; use "
            "the solver 'lagrangian', or another backend"
        )
    return _no_worse(problem, unproved, known)


def _is_proved(problem: Problem, answer: Answer) -> bool:
    """Whether what is called optimal loses no more than what was proved."""
    if answer.status is not Status.OPTIMAL or answer.columns is None or answer.bound is None:
        return True  # not called so, or by a backend that tells no bound
    slack = rounding(problem, problem.grouped.expand(answer.columns))
    return _loss_of(problem, answer.columns) <= answer.bound + slack


def _no_worse(problem: Problem, answer: Answer, known: Columns | None) -> Answer:
    if known is None or answer.status is Status.INFEASIBLE:
        return answer
    if answer.columns is None:
        return replace(answer, status=Status.TIME_LIMIT, columns=known)
    is_worse = _loss_of(problem, answer.columns) > _loss_of(problem, known)
    return replace(answer, columns=known) if is_worse else answer


def _within(problem: Problem, reduced: Reduced, effort: Effort, start: Columns | None) -> Answer:
    """The program's answer within the budgets, by the problem's own arithmetic."""
    excluded: list[Columns] = []
    if start is not None and not reduced.usable[np.arange(len(start)), start].all():
        start = None  # another choice betters it, and some of its cells are not in the program
    answer = first = _solved(_Program.of(reduced, excluded), effort, start)
    while answer.columns is not None:
        if problem.is_feasible(problem.grouped.expand(answer.columns)):
            return answer
        if len(excluded) == _MAX_CUTS:
            break
        excluded.append(answer.columns)
        answer = _solved(_Program.of(reduced, excluded), effort, None)
    if answer.columns is None:
        return answer
    inside = _solved(_Program.of(reduced, [], _MARGIN), effort, None)
    if inside.columns is not None and problem.is_feasible(problem.grouped.expand(inside.columns)):
        return Answer(Status.FEASIBLE, inside.columns, first.bound)
    return Answer(Status.UNKNOWN, None, first.bound)


@final
@dataclass(frozen=True, eq=False)
class _Program:
    """A PuLP model over the rows that have a choice.

    Args:
        model: The ``pulp.LpProblem``; its objective is scaled and minimised.
        variables: Cell ``(group, column)`` to its binary variable.
        linearised: Variables of pairs of cells; both groups have a choice.
        kept: ``[G]`` the only cell of a row that is not in the model.
        factor: From losses to the model's objective.
        offset: Loss where the model's objective is 0.
        is_excluded: Whether ``kept`` alone, without any variable, is not wanted.
    """

    model: Any
    variables: dict[tuple[int, int], Any]
    linearised: list[Product]
    kept: Columns
    factor: float
    offset: float
    is_excluded: bool

    @classmethod
    def of(cls, reduced: Reduced, excluded: list[Columns], margin: float = 0.0) -> "_Program":
        """The model; ``excluded [G]`` are not wanted, ``margin`` is the retreat from limits."""
        is_open = reduced.usable.sum(axis=1) > 1
        kept = reduced.usable.argmax(axis=1)
        single = ~is_open, kept[~is_open]
        joint = reduced.pairwise
        highest = reduced.highest
        factor = OBJECTIVE_SCALE / highest if highest > 0 else 1.0
        pairs = zip(*np.nonzero(reduced.usable & is_open[:, None]), strict=True)
        cells = [(int(group), int(column)) for group, column in pairs]
        model = pulp.LpProblem("assignment", pulp.LpMinimize)
        x = {cell: model.add_variable(f"x_{cell[0]}_{cell[1]}", 0, 1, "Integer") for cell in cells}
        linearised = linearised_products(model, joint, reduced.usable, x)
        terms = [(x[cell], reduced.rise[cell] * factor) for cell in cells]
        model += _sum(terms + _costs(linearised, 0, factor))
        for group in np.flatnonzero(is_open).tolist():
            open_columns = np.flatnonzero(reduced.usable[group]).tolist()
            model += _sum([(x[group, column], 1.0) for column in open_columns]) == 1
        for row, excess in enumerate(reduced.excess, start=1):
            terms = [(x[cell], excess[cell]) for cell in cells if excess[cell] > 0]
            terms += _costs(linearised, row)
            if terms:
                # Rounding must not rule out what is within: answers are checked exactly.
                room = 1.0 - margin if margin else 1.0 + float(reduced.edge[row - 1])
                model += _sum(terms) <= room - float(excess[single].sum())
        for columns in excluded:
            # Decided rows are the same in every answer: the rest must differ in one cell at least.
            same = [(x[cell], 1.0) for cell in enumerate(columns.tolist()) if cell in x]
            model += _sum(same) <= len(same) - 1
        offset = reduced.offset + float(reduced.rise[single].sum())
        is_excluded = not x and any(np.array_equal(kept, columns) for columns in excluded)
        return cls(model, x, linearised, kept, factor, offset, is_excluded)


def _costs(linearised: list[Product], row: int, factor: float = 1.0) -> list[tuple[Any, float]]:
    return [
        (product.variable, product.costs[row] * factor)
        for product in linearised
        if product.costs[row] > 0
    ]


def _sum(terms: list[tuple[Any, float]]) -> Any:
    # In one go: PuLP's `+` copies the whole expression for every term.
    return pulp.LpAffineExpression([(variable, float(number)) for variable, number in terms])


def _solved(program: _Program, effort: Effort, start: Columns | None) -> Answer:
    if not program.variables:
        # Nothing is left to choose, and so no variable that a cut could be written on.
        if program.is_excluded:
            return Answer(Status.INFEASIBLE, None, None)
        return Answer(Status.OPTIMAL, program.kept, program.offset)
    if start is not None:
        for (group, column), variable in program.variables.items():
            variable.setInitialValue(float(start[group] == column), check=False)
        for product in program.linearised:
            product.variable.setInitialValue(product.value(start), check=False)
    bound = run(
        program.model, effort.way, effort.time_limit_s, effort.relative_gap,
        warm_start=start is not None, absolute_gap=effort.absolute_gap * program.factor,
    )  # fmt: skip
    if program.model.sol_status == pulp.LpSolutionInfeasible:
        return Answer(Status.INFEASIBLE, None, None)
    bound = None if bound is None else bound / program.factor + program.offset
    # `status` is "Optimal" even at a time limit; `sol_status` tells the two apart.
    is_finished = program.model.sol_status == pulp.LpSolutionOptimal
    columns = _columns(program)
    if columns is None:
        return Answer(Status.UNKNOWN, None, bound)
    if not is_finished:
        return Answer(Status.TIME_LIMIT, columns, bound)
    # Backends say "optimal" as well where they stopped within the gap that was asked for.
    is_exact = not (effort.relative_gap or effort.absolute_gap)
    return Answer(Status.OPTIMAL if is_exact else Status.FEASIBLE, columns, bound)


def _columns(program: _Program) -> Columns | None:
    """``[G]``, unless the backend stopped before a first solution."""
    columns = program.kept.copy()
    taken: dict[int, float] = {}
    for (group, column), variable in program.variables.items():
        if variable.varValue is None:
            return None
        # Values are whole to within a tolerance only, hence a threshold and no comparison with 1.
        if variable.varValue > taken.get(group, 0.5):
            taken[group] = variable.varValue
            columns[group] = column
    # A backend that was stopped may return fractions, with no column of a row above one half.
    rows = {group for group, _ in program.variables}
    return columns if len(taken) == len(rows) else None
