"""Where the doubly nonnegative relaxation begins: at what the convex one has proved."""

from dataclasses import replace

import numpy as np

from mpq.solvers.quadratic.convex_relaxation import Relaxed
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Iterate, Subproblem

_PENALTY = 0.05
"""In units of the open gap: a larger one holds on to the start, with which the bound rises late."""


def warmed(whole: Subproblem, quadratic: Quadratic, relaxation: Relaxed, unit: float) -> Subproblem:
    r"""The same, with an iterate that proves what the convex relaxation does.

    With the slope :math:`u = F^T x` of the convex relaxation at its shares ``x``, and
    :math:`w = F^T x' - u`,

    .. math:: \tfrac12 \lVert F^T x' \rVert^2
        = \tfrac12 \lVert w \rVert^2 + u^T F^T x' - \tfrac12 u^T u,

    so that the multiplier :math:`-\tfrac12 w w^T`, as a form in ``(1, x', slack)``, leaves the
    linear form that the convex relaxation bounds; what its budgets and groups add is 0 for every
    assignment.

    Args:
        whole: Made of the quadratic.
        quadratic: The loss and the budgets.
        relaxation: Of the same moves.
        unit: Of the subproblem's losses, in the loss table's unit.
    """
    size, slacks = len(whole.linear), len(whole.room)
    cells = slice(1, 1 + size)
    share = relaxation.share
    pull = whole.gram @ share  # F u
    floors = np.minimum.reduceat(quadratic.costs, quadratic.starts, axis=1).sum(axis=1)
    free = quadratic.limits - floors
    multiplier = relaxation.multiplier * np.where(free > 0, free, 1.0) / unit
    slope = multiplier @ whole.costs
    level = np.minimum.reduceat(whole.linear + pull + slope, whole.starts)
    form = np.zeros((1 + size + slacks,) * 2)
    form[0, 0] = -0.5 * float(share @ pull) - float(multiplier @ whole.room) + float(level.sum())
    form[0, cells] = 0.5 * (pull + slope - level[whole.group])
    form[0, 1 + size :] = 0.5 * multiplier
    form[1:, 0] = form[0, 1:]
    form[cells, cells] = -0.5 * whole.gram
    slack = np.maximum(whole.room - whole.costs @ share, 0.0)
    point = np.concatenate([[1.0], share, slack])
    return replace(whole, start=Iterate(np.outer(point, point), form, _PENALTY))
