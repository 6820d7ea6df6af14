"""Small subproblems by hand."""

from itertools import product

import numpy as np

from mpq.solvers.quadratic.subproblem import Subproblem
from tests.solvers.quadratic.cases import Floats


def made(
    costs: list[list[float]], room: list[float], sizes: tuple[int, ...] = (2, 2)
) -> Subproblem:
    """Groups of so many cells; each loses 1, 2, 4, ... alone, and two of them 8 together."""
    count = sum(sizes)
    group = np.repeat(np.arange(len(sizes)), sizes)
    gram = np.full((count, count), 8.0)
    same = group[:, None] == group
    np.fill_diagonal(same, False)
    return Subproblem(
        0.5, np.power(2.0, np.arange(count), dtype=np.float64), gram,
        np.array(costs).reshape(len(room), count), np.array(room), group, 10 + np.arange(count),
        (3,), same,
    )  # fmt: skip


def points(problem: Subproblem) -> list[Floats]:
    """``(1, x, slack)`` of every assignment within the room."""
    ranges = [np.flatnonzero(problem.group == g).tolist() for g in range(problem.group[-1] + 1)]
    found = []
    for cells in product(*ranges):
        x = np.zeros(len(problem.group))
        x[list(cells)] = 1.0
        slack = problem.room - problem.costs @ x
        if (slack >= 0).all():
            found.append(np.concatenate([[1.0], x, slack]))
    return found
