"""Exact solver for losses with interactions: integer programs with ever more linear cuts."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import pulp
from scipy.optimize import linprog

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError, SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.additive.pair_variables import linearised_products
from mpq.solvers.additive.pulp_backend import Way, chosen_backend, run
from mpq.solvers.proofs import rounding
from mpq.solvers.quadratic.additive_start import from_additive
from mpq.solvers.quadratic.bound import simple_bound
from mpq.solvers.quadratic.convex_relaxation import relaxed
from mpq.solvers.quadratic.local_search import searched
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.relaxed_start import core

_RELAXATION_S = 1.0
"""Seconds that the linear relaxation has in any case: without its bound nothing is known."""
_ROOT_ROUNDS = 60
"""Of tangents to the relaxation before the first integer program: each is one linear program."""
_CLOSE = 1e-3
"""Of the loss: where the cuts of the relaxation are called enough."""
_SAFE = 1e-7
"""Of the loss: what a bound may owe to the tolerances of the integer program."""
_LARGEST = 1e9
"""Of a coefficient of a cut, in units of the loss. Choices are whole to within 1e-9 (`TOLERANCE`):
a larger one would move the cut by more than the loss. HiGHS itself refuses a row from 1e15 on
(`large_matrix_value`)."""


@final
@dataclass(frozen=True)
class OuterApproximation(Solver):
    r"""Replaces the convex loss by linear functions below it, more of them every round.

    With the eigenvectors of the Gram matrix the loss is :math:`c^T x + \sum_k z_k`,
    :math:`z_k = y_k^2 / 2`, :math:`y = V^T x`. A tangent of each square,

    .. math:: z_k \ge \hat y_k y_k - \hat y_k^2 / 2,

    is a cut: first at the solutions of the linear relaxation, until that has the bound of the
    convex one; then at the assignment that each integer program finds (Duran and Grossmann 1986,
    doi:10.1007/BF02592064). An integer program proves a bound, its assignment has a loss, and the
    search ends where the two meet. Departs from the paper by cutting every square apart (Hijazi,
    Bonami and Ouorou 2014, doi:10.1287/ijoc.2013.0570), by beginning at the local search's answer
    and at the tangents of the convex relaxation (``mpq.solvers.quadratic.convex_relaxation``), and
    by leaving out what that rules out: moves with which nothing loses less than that answer. Costs
    of pairs of layers are rows of the integer programs alone, as in ``ilp``; the relaxation goes
    without. ``branch-and-bound`` has a tighter relaxation, which is quicker for tens of layers
    (``benchmarks/interactions.json``), and where the factor has more rows than there are layers;
    this one shares no bound with it.

    Args:
        gap: Where to stop: the distance from the bound, as a share of the loss.
        time_limit_s: Wall time in seconds of the search.
        backend: As for ``ilp``.
        num_restarts: Restarts of the local search that finds the first assignment: a good one cuts
            the integer programs' trees short.
        seed: Seed of that local search.

    Raises:
        InputError: If an option makes no sense.
    """

    name: ClassVar[str] = "outer-approximation"
    summary: ClassVar[str] = "interactions by integer programs, for hundreds of layers"

    gap: float = 1e-3
    time_limit_s: float = 60.0
    backend: str = "auto"
    num_restarts: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_effort(self.name, self.gap, self.time_limit_s)
        if self.num_restarts < 0 or self.seed < 0:
            raise InputError(
                f"{self.name} needs num_restarts >= 0 and seed >= 0; got {self.num_restarts} and "
                f"{self.seed}"
            )

    def at_most_s(self, problem: Problem) -> float:
        """See ``Solver.at_most_s``."""
        del problem
        return self.time_limit_s

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        Raises:
            MissingDependencyError: If the backend is not installed.
            SolverError: If the backend fails.
        """
        return from_additive(problem, self.name, self._search)

    def _search(self, problem: Problem, exact: Solution) -> Solution:
        assert exact.columns is not None
        deadline = time.perf_counter() + self.time_limit_s
        quadratic = Quadratic.of(problem)
        relaxation = relaxed(quadratic, deadline)
        best = searched(
            problem, quadratic, relaxation, exact.columns, self.num_restarts, self.seed, deadline
        )
        loss = problem.loss_of(best)
        bound = max(simple_bound(problem, quadratic, exact.bound), relaxation.bound)
        if loss - bound <= self.gap * abs(loss):
            return Solution(self._status(loss, bound, deadline), best, loss, bound, self.name, 0.0)
        first = best[[rows[0] for rows in problem.grouped.members]]
        keep = core(quadratic, relaxation, loss, first)
        quadratic, shares = quadratic.among(keep), relaxation.share[keep]
        least = time.perf_counter() + _RELAXATION_S
        program = _Program.of(quadratic, loss, shares, max(deadline, least))
        # A linear program that contradicts what is known is not needed: the integer ones prove.
        if program.relaxed <= loss + rounding(problem, best):
            bound = max(bound, program.relaxed)
        while loss - bound > self.gap * abs(loss) and time.perf_counter() < deadline:
            most = loss + rounding(problem, best)
            moves, proved = self._solved(program, deadline - time.perf_counter(), most)
            # What was left out of the program loses no less than the answer it was left out for.
            bound = max(bound, proved)
            found = problem.grouped.expand(quadratic.column[moves]) if len(moves) else best
            if problem.is_feasible(found):
                best = min(best, found, key=problem.loss_of)
            loss = problem.loss_of(best)
            # Nothing was found, or nothing new: without a new tangent the next program is the same.
            if not program.cut(moves):
                break
        return Solution(self._status(loss, bound, deadline), best, loss, bound, self.name, 0.0)

    def _solved(self, program: "_Program", seconds: float, most: float) -> tuple[Columns, float]:
        """As ``_Program.solved``, in a way that proves no more than is known to be lost."""
        first = Way(chosen_backend(self.backend))
        for way in (first, *first.others()):
            # CBC tells no bound if it may stop early: asked last, that takes the word of nobody.
            may_stop = way.tells_bound or way is not first
            moves, proved = program.solved(way, seconds, self.gap if may_stop else 0.0)
            if proved <= most:
                return moves, proved
        raise SolverError(
            f"{self.name} is wrong: however it was solved, the integer program proved "
            f"{proved:.10g}, and an assignment is known that loses at most {most:.10g}"
        )

    def _status(self, loss: float, bound: float, deadline: float) -> Status:
        # Twice: what was taken off the bound, and as much again for the start's loss, its unit.
        if loss - bound <= 2 * _SAFE * abs(loss):
            return Status.OPTIMAL
        is_out_of_time = loss - bound > self.gap * abs(loss) and time.perf_counter() >= deadline
        return Status.TIME_LIMIT if is_out_of_time else Status.FEASIBLE


@final
class _Program:
    """A PuLP model that grows by cuts; losses in units of a known one.

    Args:
        quadratic: Loss and budgets over the moves of the problem.
        unit: In the loss table's unit.
    """

    def __init__(self, quadratic: Quadratic, unit: float) -> None:
        self.unit = abs(unit) or 1.0
        self._group = quadratic.group
        self._rows = _orthogonal(quadratic) / np.sqrt(self.unit)  # [M, K], y = x' rows
        self._linear = quadratic.linear / self.unit
        floors = np.minimum.reduceat(quadratic.costs, quadratic.starts, axis=1)  # [R, G]
        free = quadratic.limits - floors.sum(axis=1)
        extra = quadratic.costs - floors[:, quadratic.group]
        # A cell beyond the limit is ruled out and need not be as large as it is.
        unit_of = np.where(free > 0, free, 1.0)[:, None]
        self._room = (np.maximum(free, 0.0) + quadratic.edge) / unit_of[:, 0]  # [R]
        room = self._room[:, None]
        self._costs = np.where(extra / unit_of > room, 2 * room + 1, extra / unit_of)  # [R, M]
        self._index = quadratic.index
        loss, joint = np.split(quadratic.pairwise.values, [1], axis=1)
        joint = joint / unit_of[:, :, None]
        # Above 1 is what pairs of cells never are together.
        joint = np.where(joint > room[:, :, None], 2.0, np.minimum(joint, 1.0))
        joint = np.concatenate([loss, joint], axis=1)
        self._pairwise = replace(quadratic.pairwise, values=joint)
        self._tangents: list[tuple[Array, Array]] = []  # [C, M + K] times (x, z) <= [C]
        self._seen: set[bytes] = set()
        self.relaxed = -math.inf  # bound of the relaxation, in the loss table's unit

    @classmethod
    def of(
        cls,
        quadratic: Quadratic,
        unit: float,
        shares: Array | None = None,
        deadline: float = math.inf,
    ) -> "_Program":
        """With the cuts of the relaxation.

        Args:
            quadratic: Loss and budgets over the moves of the problem.
            unit: In the loss table's unit.
            shares: ``[M]`` where the convex relaxation is solved, if that is known: with tangents
                there, the linear one has its bound at once.
            deadline: Time of ``time.perf_counter`` in seconds, after which no cut is made.
        """
        program = cls(quadratic, unit)
        if shares is not None:
            point = shares @ program._rows
            program._add(point, np.ones(len(point), dtype=np.bool_))
        program._relax(deadline)
        return program

    def _relax(self, deadline: float) -> None:
        """Cuts at the relaxation's solutions, until it has the bound of the convex one."""
        num_moves, rank = self._rows.shape
        one = (self._group == np.arange(self._group[-1] + 1)[:, None]).astype(np.float64)
        budgets = np.hstack([self._costs, np.zeros((len(self._costs), rank))])
        for _ in range(_ROOT_ROUNDS):
            seconds = deadline - time.perf_counter()
            if seconds <= 0:
                return
            tangents = [left for left, _ in self._tangents]
            found = linprog(
                np.r_[self._linear, np.ones(rank)],
                A_ub=np.vstack([budgets, *tangents]),
                b_ub=np.concatenate([self._room, *(right for _, right in self._tangents)]),
                A_eq=np.hstack([one, np.zeros((len(one), rank))]),
                b_eq=np.ones(len(one)),
                bounds=[(0, 1)] * num_moves + [(0, None)] * rank,
                options={} if math.isinf(deadline) else {"time_limit": seconds},
            )
            if found.status != 0:  # out of time, or for the integer programs to say
                return
            self.relaxed = (found.fun - _SAFE) * self.unit
            point = found.x[:num_moves] @ self._rows
            missing = 0.5 * point**2 - found.x[num_moves:]
            if missing.sum() <= _CLOSE:
                return
            # Squares that are nearly met would only make the programs larger: those left out add
            # up to a tenth of what is called close.
            self._add(point, missing > 0.1 * _CLOSE / rank)

    def _add(self, point: Array, which: npt.NDArray[np.bool_]) -> None:
        """Tangents of some squares at ``point [K]``."""
        left = np.hstack([(self._rows * point).T, -np.eye(len(point))])
        # Without a cut the bound still holds.
        which = which & (np.abs(left).max(axis=1) < _LARGEST)
        self._tangents.append((left[which], 0.5 * point[which] ** 2))

    def cut(self, moves: Columns) -> bool:
        """Tangents at an assignment, unless it had them before."""
        if not len(moves) or moves.tobytes() in self._seen:
            return False
        self._seen.add(moves.tobytes())
        point = self._rows[moves].sum(axis=0)
        self._add(point, np.ones(len(point), dtype=np.bool_))
        return True

    def solved(self, way: Way, seconds: float, gap: float) -> tuple[Columns, float]:
        """``[G]`` moves of the integer program, none if it found none, and a bound of the loss."""
        model, x = self._model()
        # HiGHS refuses a negative time limit and then has none. Half of the gap is for what the
        # tangents are still below the squares.
        proved = run(model, way, max(seconds, 1e-3), relative_gap=gap / 2)
        bound = -math.inf if proved is None else (proved - _SAFE) * self.unit
        if any(variable.varValue is None for variable in x):
            return np.empty(0, dtype=np.intp), bound
        taken = np.flatnonzero([variable.varValue > 0.5 for variable in x])
        # A program that was stopped may have fractions, and a group without a move above one half.
        is_choice = np.array_equal(self._group[taken], np.arange(self._group[-1] + 1))
        return (taken if is_choice else taken[:0]), bound

    def _model(self) -> tuple[Any, list[Any]]:
        num_moves, rank = self._rows.shape
        model = pulp.LpProblem("outer_approximation", pulp.LpMinimize)
        x = [model.add_variable(f"x_{i}", 0, 1, "Integer") for i in range(num_moves)]
        z = [model.add_variable(f"z_{i}", 0) for i in range(rank)]
        every = [*x, *z]
        model += _sum(every, np.r_[self._linear, np.ones(rank)])
        for group in range(int(self._group[-1]) + 1):
            moves = np.flatnonzero(self._group == group)
            model += _sum([x[i] for i in moves], np.ones(len(moves))) == 1
        cells = {tuple(cell): x[self._index[*cell]] for cell in np.argwhere(self._index >= 0)}
        linearised = linearised_products(model, self._pairwise, self._index >= 0, cells)
        products = [product.variable for product in linearised]
        for row, costs in enumerate(self._costs, start=1):
            joint = np.array([product.costs[row] for product in linearised])
            model += _sum([*x, *products], np.r_[costs, joint]) <= float(self._room[row - 1])
        for left, right in self._tangents:
            for row, limit in zip(left, right.tolist(), strict=True):
                model += _sum(every, row) <= limit
        return model, x


def _orthogonal(quadratic: Quadratic) -> Array:
    """``[M, K]`` orthogonal columns with the Gram matrix of the factor's rows."""
    rows = quadratic.rows
    # Of the two Gram matrices the smaller one has all eigenvalues that are not 0.
    if rows.shape[1] < len(rows):
        values, vectors = np.linalg.eigh(rows.T @ rows)
        return np.asarray(rows @ vectors[:, values > 0])
    values, vectors = np.linalg.eigh(quadratic.gram)
    # Rounding leaves some eigenvalues below 0, of which there is no square root.
    kept = values > 0
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _sum(variables: list[Any], numbers: Array) -> Any:
    # Zeros are left out, and all terms are given at once: PuLP's `+` copies the expression.
    used = np.flatnonzero(numbers)
    return pulp.LpAffineExpression([(variables[i], float(numbers[i])) for i in used.tolist()])
