"""Where a local search begins: the relaxation's shares made whole, among the moves that matter."""

import math
import time
from sys import float_info

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.tolerances import EQUAL_LOSSES
from mpq.solvers.quadratic.convex_relaxation import Relaxed
from mpq.solvers.quadratic.moves import Quadratic


def rounded(quadratic: Quadratic, share: Array, deadline: float = math.inf) -> Columns | None:
    """``[G]`` the largest share of every group, changed until the budgets hold.

    Args:
        quadratic: The loss and the budgets, without costs of pairs of groups.
        share: ``[M]`` of each move in a relaxation's answer.
        deadline: Time of ``time.perf_counter`` in seconds, after which nothing is changed.

    Returns:
        ``None`` if no single change brings the budgets nearer, or there is no time for it.
    """
    held = _largest(quadratic, share)
    # Budgets of unlike units are added up: in units of their largest single cost.
    unit = np.maximum(np.abs(quadratic.costs).max(axis=1), float_info.min)
    # Each change brings the budgets nearer, and most groups change once.
    for _ in range(2 * len(held)):
        over = (quadratic.costs[:, held].sum(axis=1) - quadratic.limits) / unit
        if (over <= 0).all():
            return quadratic.column[held]
        old = held[quadratic.group]
        extra = (quadratic.costs - quadratic.costs[:, old]) / unit[:, None]
        before = np.maximum(over, 0.0)
        relief = (before[:, None] - np.maximum(over[:, None] + extra, 0.0)).sum(axis=0)
        # What frees more than is needed is no better for it.
        helps = np.flatnonzero(relief > 0)
        if not len(helps) or time.perf_counter() > deadline:
            return None
        rise = np.maximum(quadratic.changes(held)[helps], 0.0)
        move = helps[np.argmin(rise / relief[helps])]
        held[quadratic.group[move]] = move
    return None


def _largest(quadratic: Quadratic, share: Array) -> Columns:
    """``[G]`` the first move of the largest share."""
    most = np.maximum.reduceat(share, quadratic.starts)[quadratic.group]
    moves = np.flatnonzero(share == most)
    return moves[np.unique(quadratic.group[moves], return_index=True)[1]]


def core(quadratic: Quadratic, relaxation: Relaxed, loss: float, columns: Columns) -> Mask:
    """``[M]`` moves that may be in an assignment that loses less, and those of a known one.

    Args:
        quadratic: The loss and the budgets.
        relaxation: What it proves of every move.
        loss: Of the known assignment, in the loss table's unit.
        columns: ``[G]`` the known assignment.
    """
    slack = EQUAL_LOSSES * (abs(loss) + abs(relaxation.bound))
    kept = relaxation.bound + relaxation.reduced_cost <= loss + slack
    kept[quadratic.moves(columns)] = True
    return np.asarray(kept)
