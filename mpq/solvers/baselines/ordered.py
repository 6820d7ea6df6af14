"""Bits that fall along an order of the layers, by an integer program."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import nan
from typing import Any, ClassVar, Final, final

import numpy as np
import pulp

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import LIMIT
from mpq.quantization.precision import Precision
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import require_additive, require_no_pairs
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.additive.milp import OBJECTIVE_SCALE
from mpq.solvers.additive.pulp_backend import Way, chosen_backend, run

_MARGINS: Final = (0.0, 1e-7)
"""Retreats from every limit: an answer may break one by the program's tolerance."""


@final
@dataclass(frozen=True)
class Ordered(Solver):
    r"""The least loss among assignments whose bits never rise along an order of the layers.

    .. math:: \min_b \sum_\ell s_{\ell b_\ell} \quad\text{so that}\quad
        \iota_k > \iota_\ell \Rightarrow \mathrm{bits}(b_k) \ge \mathrm{bits}(b_\ell)

    for the bits of weights by their scores, and for those of inputs by theirs, where the loss table
    has scores (``CostTable.scores``); without scores layers are in the order of what they lose at
    the fewest bits. Of equal scores the first layer of the network has more. Tied layers have the
    highest score among them, and layers without a choice are in no order. HAWQ (Dong et al. 2019,
    arXiv:1905.03696) gives more bits to layers of larger curvature; HAWQ-V2 (Dong et al. 2020,
    arXiv:1911.03852) looks for the least loss among such assignments, which its Pareto frontier is
    made of; with two levels the first layers have the higher one, as many as a fractional mean
    allows (Layer-Wise Quantization, Dumitru et al. 2024, arXiv:2406.17415). Departs from them in
    solving an integer program instead of trying everything.
    The bound beside the answer is of all assignments, in any order.
    """

    name: ClassVar[str] = "ordered"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "bits fall along an order of the layers (HAWQ, HAWQ-V2)"

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions or costs of pairs of layers.
            SolverError: If the integer program fails.
        """
        start = time.perf_counter()
        require_additive(problem, self.name)
        require_no_pairs(problem, self.name)
        exact = solve_additive(problem)
        if exact.columns is None:
            return replace(exact, solver=self.name)
        columns = _chosen(problem)
        seconds = time.perf_counter() - start
        if columns is None:
            why = "no assignment within the budgets has bits that fall along the order"
            return Solution(Status.UNKNOWN, None, nan, exact.bound, self.name, seconds, why=why)
        loss = problem.loss_of(columns)
        is_best = exact.status is Status.OPTIMAL and loss <= exact.loss
        bound = None if exact.bound is None else min(exact.bound, loss)
        status = Status.OPTIMAL if is_best else Status.FEASIBLE
        return Solution(status, columns, loss, bound, self.name, seconds)


def _chosen(problem: Problem) -> Columns | None:
    """``[L]``, or ``None`` where the program has no answer."""
    for margin in _MARGINS:
        model, variables = _program(problem, margin)
        run(model, Way(chosen_backend()))
        if model.sol_status != pulp.LpSolutionOptimal:
            return None
        taken = np.zeros(problem.grouped.allowed.shape)
        for cell, variable in variables.items():
            taken[cell] = variable.varValue
        columns = problem.grouped.expand(taken.argmax(axis=1))
        if problem.is_feasible(columns):
            return columns
    return None


def _program(problem: Problem, margin: float) -> tuple[Any, dict[tuple[int, int], Any]]:
    """The model and its variable for every cell that is allowed."""
    grouped = problem.grouped
    model = pulp.LpProblem("ordered", pulp.LpMinimize)
    x = {
        (int(g), int(b)): model.add_variable(f"x_{g}_{b}", 0, 1, "Integer")
        for g, b in zip(*np.nonzero(grouped.allowed), strict=True)
    }
    model += _sum(x, _above(grouped.loss, grouped.allowed, OBJECTIVE_SCALE))
    for g in range(len(grouped.members)):
        model += pulp.lpSum(variable for cell, variable in x.items() if cell[0] == g) == 1
    for costs, limit in zip(grouped.costs, grouped.limits, strict=True):
        least = np.where(grouped.allowed, costs, np.inf).min(axis=1)
        free = limit - least.sum()
        excess = np.where(grouped.allowed, costs - least[:, None], 0.0)
        rounding = LIMIT * abs(limit)
        if free <= rounding:  # nothing is: whatever costs more is beyond the limit
            model += _sum(x, np.where(excess > rounding, 1.0, 0.0)) <= 0
            continue
        # In units of what is free: the program's tolerances are absolute.
        model += _sum(x, excess / free) <= 1 - margin
    for more, fewer in _orders(problem):
        model += _sum(x, more) >= _sum(x, fewer)
    return model, x


def _above(values: Array, allowed: Mask, most: float) -> Array:
    """Values above the least of their row, the largest of all as given."""
    least = np.where(allowed, values, np.inf).min(axis=1)
    above = np.where(allowed, values - least[:, None], 0.0)
    return np.asarray(above * (most / above.max() if above.max() > 0 else 1.0))


def _sum(variables: dict[tuple[int, int], Any], factors: Array) -> Any:
    return pulp.LpAffineExpression(
        [(variable, float(factors[cell])) for cell, variable in variables.items() if factors[cell]]
    )


def _orders(problem: Problem) -> Iterator[tuple[Array, Array]]:
    """Pairs of cells ``[G, B]``, of which as many of the first are taken as of the second.

    Each pair is of two neighbours of an order, and a number of bits that both may have or exceed.
    """
    allowed, precisions = problem.grouped.allowed, problem.loss.precisions
    for what, scores in _scores(problem).items():
        bits = np.array([_bits(precision, what) for precision in precisions])
        is_free = [len(set(bits[row])) > 1 for row in allowed]
        order = [g for g in np.argsort(-scores, kind="stable").tolist() if is_free[g]]
        for level in sorted(set(bits.tolist()))[1:]:
            enough = allowed & (bits >= level)
            for first, second in pairwise(order):
                yield _only(enough, first), _only(enough, second)


def _only(cells: Array, row: int) -> Array:
    found = np.zeros(cells.shape)
    found[row] = cells[row]
    return found


def _bits(precision: Precision, what: str) -> int:
    return (precision.weight if what == WEIGHTS else precision.activation).number.bits


def _scores(problem: Problem) -> dict[str, Array]:
    """``[G]`` each, of weights and of inputs."""
    grouped, table = problem.grouped, problem.loss
    if table.scores:
        return {what: _highest(table.scores[what], grouped.members)
                for what in (WEIGHTS, INPUTS) if what in table.scores}  # fmt: skip
    bits = np.array([_bits(p, WEIGHTS) + _bits(p, INPUTS) for p in table.precisions])
    fewest = np.where(grouped.allowed, bits, np.inf).argmin(axis=1)
    return {WEIGHTS: grouped.loss[np.arange(len(fewest)), fewest]}


def _highest(scores: Sequence[float], members: Sequence[Sequence[int]]) -> Array:
    return np.array([max(scores[row] for row in rows) for rows in members])
