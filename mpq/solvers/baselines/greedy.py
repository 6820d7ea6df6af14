"""A baseline: one layer after the other, by the loss for every unit of cost."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np

from mpq._support.arrays import Columns
from mpq.errors import UnknownNameError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.marginal_gain import _hull, raised
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines._base import solved_by

DIRECTIONS = ("up", "down")


@final
@dataclass(frozen=True)
class Greedy(Solver):
    """Raises or lowers one layer at a time.

    ``up`` starts from the cheapest precisions and takes the step of the largest gain per cost that
    still fits (marginal analysis, Fox 1966, doi:10.1287/mnsc.13.3.210). ``down`` starts from those
    with the least loss and undoes the steps of the smallest gain per cost until the budgets hold,
    as Tai and Wu lower the layers of a vision transformer, weighing loss against compression (2024,
    MPTQ-ViT, arXiv:2401.14895). Departs from both in that steps follow the lower convex hull of
    every layer, and that several budgets are one cost, each in units of what its limit leaves
    free. The bound beside the answer is the relaxation's.

    Args:
        direction: ``up`` from the least cost, or ``down`` from the least loss.

    Raises:
        UnknownNameError: If there is no such direction.
    """

    name: ClassVar[str] = "greedy"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "baseline: largest gain per cost first (up), smallest undone (down)"

    direction: Literal["up", "down"] = "up"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise UnknownNameError("direction of greedy", self.direction, DIRECTIONS)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; several budgets may leave it without an answer.

        Raises:
            InputError: If the problem has interactions or costs of pairs of layers.
        """
        return solved_by(raised if self.direction == "up" else _lowered, problem, self.name)


def _lowered(reduced: Reduced) -> Columns:
    hull = _hull(reduced)
    columns = hull.start.copy()
    below = np.empty(len(hull.row), dtype=np.intp)  # where each step comes from
    for step, (row, column) in enumerate(zip(hull.row.tolist(), hull.column.tolist(), strict=True)):
        below[step], columns[row] = columns[row], column
    used = reduced.used(columns)
    # Steps fall in gain per cost, within a row too: from the end, each undoes the last of its row.
    for step in range(len(below) - 1, -1, -1):
        if (used <= 1).all():
            break
        row = hull.row[step]
        used = used + reduced.excess[:, row, below[step]] - reduced.excess[:, row, columns[row]]
        columns[row] = below[step]
    return columns
