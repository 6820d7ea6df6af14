"""What is proved of a problem with interactions, given an assignment that is known."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from mpq.problem.problem import Problem
from mpq.problem.tolerances import EQUAL_LOSSES
from mpq.solvers.quadratic.convex_relaxation import Relaxed
from mpq.solvers.quadratic.doubly_nonnegative import Tightened, tightened, without_iteration
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from mpq.solvers.quadratic.warm_start import warmed

MAX_MOVES = 1500
"""Above, a single iteration of the relaxation takes seconds and gigabytes."""
MAX_ENUMERATED = 20_000
"""Assignments that are rather tried than bounded."""
_ROUND = 50
"""Iterations between two looks at what can be ruled out."""
PATIENCE = 2
"""Rounds in which little changes before a subproblem is given up."""
WARM_PATIENCE = 6
"""The same from a warm start, whose bound falls before it rises."""


@final
@dataclass(frozen=True)
class Scale:
    """The unit in which subproblems are solved.

    Args:
        unit: In the loss table's unit: what the simple bound leaves open.
        gap: Share of the known assignment's loss that need not be closed.
    """

    unit: float
    gap: float = 0.0

    @classmethod
    def of(cls, loss: float, simple: float, gap: float = 0.0) -> "Scale":
        """From a known loss and the simple bound."""
        # In units of the open gap, nothing that follows depends on how large the losses are.
        unit = max(loss - simple, EQUAL_LOSSES * abs(loss))
        # A loss of 0 with a bound of 0 leaves nothing open in whatever unit.
        return cls(unit if unit > 0 else 1.0, gap)

    def cutoff(self, loss: float) -> float:
        """In units: what an assignment must lose less than to matter."""
        # A loss of nearly 0 has no digits of its own to be relative to.
        rounding = EQUAL_LOSSES * max(abs(loss), self.unit)
        return (loss - max(self.gap * abs(loss), rounding)) / self.unit


def simple_bound(problem: Problem, quadratic: Quadratic, additive: float | None) -> float:
    r"""No assignment loses less, because the quadratic term is never below 0.

    The share :math:`\lambda` of the bound of the additive problem, and what a table that is not
    that of the interactions' diagonal adds at least.
    """
    assert problem.interactions is not None
    share = problem.interactions.shrinkage
    floor = float(np.minimum.reduceat(quadratic.linear, quadratic.starts).sum())
    if additive is None:
        return floor
    loss = problem.grouped.loss[quadratic.group, quadratic.column]
    # Where the table is the interactions' diagonal, this difference is 0.
    beside = np.minimum.reduceat(quadratic.linear - share * loss, quadratic.starts)
    return max(floor, share * additive + float(beside.sum()))


def opened(
    quadratic: Quadratic, scale: Scale, cutoff: float, relaxation: Relaxed | None = None
) -> Tightened:
    """The whole problem, without what is too bad alone.

    Args:
        quadratic: The problem's loss as a quadratic form over moves.
        scale: The unit in which it is solved.
        cutoff: In the scale's unit, what an assignment must lose less than to matter.
        relaxation: The convex one of the same moves, where an iteration is to begin at it.
    """
    whole = Subproblem.of(quadratic, scale.unit)
    if relaxation is not None:
        whole = warmed(whole, quadratic, relaxation, scale.unit)
    none = np.zeros(len(whole.group), dtype=np.bool_)
    problem = whole.ruled_out(none, np.zeros_like(whole.forbidden))
    if problem is None:
        return Tightened(None, cutoff, np.empty(0))
    if not len(problem.group):
        return Tightened(problem, problem.constant, np.empty(0))
    return without_iteration(problem, cutoff)


def pursued(
    node: Tightened,
    cutoff: float,
    work: float = math.inf,
    deadline: float = math.inf,
    patience: int = PATIENCE,
    lower: Callable[[Subproblem], float] | None = None,
) -> Tightened:
    """Rounds of tightening, until little changes or little is left.

    Args:
        node: The subproblem to begin with, and what is proved of it.
        cutoff: Loss in the scale's unit that an assignment must be below to matter.
        work: What may be spent: iterations times the cubed number of cells.
        deadline: Time of ``time.perf_counter`` in seconds, at which it stops.
        patience: Rounds in which little changes before it is given up.
        lower: Looks for a better assignment after each round, and returns the cutoff from then on.
    """
    idle = 0
    while node.problem is not None and node.problem.num_assignments > MAX_ENUMERATED:
        size = len(node.problem.group)
        # An iteration decomposes a matrix of about this size.
        work -= _ROUND * size**3
        if work < 0 or idle == patience or time.perf_counter() > deadline:
            break
        found = tightened(node.problem, cutoff, _ROUND, deadline)
        is_closer = cutoff - found.bound < 0.9 * (cutoff - node.bound)
        is_smaller = found.problem is not None and len(found.problem.group) < 0.95 * size
        idle = 0 if is_closer or is_smaller else idle + 1
        # What held for more assignments holds for fewer.
        node = replace(found, bound=max(found.bound, node.bound))
        if lower is not None and node.problem is not None:
            cutoff = lower(node.problem)
    return node


def lower_bound(
    problem: Problem, quadratic: Quadratic, loss: float, additive: float | None, work: float
) -> float:
    """No assignment loses less; the given loss itself if that is proved, or what contradicts it.

    Args:
        problem: The problem, with interactions.
        quadratic: The problem's loss as a quadratic form over moves.
        loss: Loss of a known assignment, which the bound is to come near.
        additive: Bound of the problem without interactions, or ``None``.
        work: What may be spent, as ``pursued`` counts it.
    """
    simple = simple_bound(problem, quadratic, additive)
    scale = Scale.of(loss, simple)
    cutoff = scale.cutoff(loss)
    # What is left open is rounding, and the loss is called proved.
    if simple >= cutoff * scale.unit:
        return max(loss, simple)
    if len(quadratic.group) > MAX_MOVES:
        return simple
    node = pursued(opened(quadratic, scale, cutoff), cutoff, work)
    bound = node.bound
    if node.problem is not None and node.problem.num_assignments <= MAX_ENUMERATED:
        bound = float(node.problem.enumerated()[0].min())
    if node.problem is None or bound >= cutoff:
        return loss
    return max(simple, bound * scale.unit)
