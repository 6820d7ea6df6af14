"""A better assignment from the lifted relaxation: its shares made whole, then exchanges."""

import math
from typing import Final

import numpy as np

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.solvers.quadratic.local_search import improved
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.relaxed_start import rounded
from mpq.solvers.quadratic.subproblem import Subproblem

RESTARTS: Final = 20
"""Descents after the first: together a small part of the iterations that gave the shares."""


def lowered(
    problem: Problem,
    quadratic: Quadratic,
    part: Subproblem,
    known: Columns,
    seed: int,
    deadline: float = math.inf,
) -> Columns:
    """An assignment ``[L]`` within the budgets that loses no more than the known one.

    The diagonal of the lifted matrix is a share of every cell that is left, which knows more of
    budgets and of pairs than the convex relaxation's share; and fewer moves than at first are left
    to exchange.

    Args:
        problem: The problem, with interactions.
        quadratic: Its loss as a quadratic form over moves, of which the part has some.
        part: What is left, after some iterations.
        known: ``[L]`` within the budgets.
        seed: Seed of the random changes.
        deadline: Time of ``time.perf_counter`` in seconds, after which no descent begins.
    """
    assert part.start is not None
    share = np.zeros(len(quadratic.group))
    share[list(part.decided)] = 1.0
    # A share may be 0 to the last digit and its cell be left all the same.
    share[part.move] = np.diag(part.start.lifted)[1 : 1 + len(part.move)] + 1e-9
    keep, members = share > 0, problem.grouped.members
    keep[quadratic.moves(known[[rows[0] for rows in members]])] = True
    start = known
    # What pairs of groups cost is not looked at where shares are made whole.
    columns = None if len(quadratic.pairwise) else rounded(quadratic, share, deadline)
    if columns is not None and problem.is_feasible(problem.grouped.expand(columns)):
        start = problem.grouped.expand(columns)
        keep[quadratic.moves(columns)] = True
    found = improved(problem, quadratic.among(keep), start, RESTARTS, seed, deadline)
    return min((known, found), key=problem.loss_of)
