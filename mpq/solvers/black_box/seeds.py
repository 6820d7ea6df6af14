"""Where a search for a measured loss begins: at what is known of the predicted one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Columns
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.solvers.black_box.population import Assignments, Space

_NUM_MULTIPLIERS = 64
"""Trade-offs between loss and cost that assignments are made for, even in their logarithm."""


def solved(space: Space, exact: Columns, rng: np.random.Generator) -> Assignments:
    """``[P, G]`` the exact additive answer, the convex hull, and the uniform precisions.

    Those that break a budget are repaired, or left out where that fails.

    Args:
        space: Search space of the problem.
        exact: ``[L]`` the exact answer of the additive problem.
        rng: Generator of the repairs' draws.
    """
    first = space.groups(exact[None])
    others = space.repaired(np.concatenate([hull(space.problem), uniform(space)]), rng)
    return distinct(np.concatenate([first, others[space.within(others)]]))


def hull(problem: Problem) -> Assignments:
    r"""``[P, G]`` answers of the relaxed problem, from the least loss to the least cost.

    .. math:: z_g(\mu) = \arg\min_b \; s_{gb} + \mu \sum_r c^r_{gb} / C^r

    for a geometric range of multipliers :math:`\mu`, and 0 (Everett 1963,
    doi:10.1287/opre.11.3.399, as Shoham and Gersho 1988, doi:10.1109/29.90373, use it to allocate
    bits). Whether they meet the budgets is not asked.
    """
    grouped = problem.grouped
    # A limit may be 0, or negative where costs are.
    scale = np.where(grouped.limits != 0, np.abs(grouped.limits), 1.0)
    cost = (grouped.costs / scale[:, None, None]).sum(axis=0)  # [G, B]
    loss = np.where(grouped.allowed, grouped.loss, np.inf)
    multipliers = np.concatenate([[0.0], _multipliers(grouped.loss, cost, grouped.allowed)])
    found = [(loss + multiplier * cost).argmin(axis=1) for multiplier in multipliers]
    return distinct(np.array(found))


def _multipliers(
    loss: npt.NDArray[np.float64],
    cost: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """From below the flattest exchange of loss for cost to above the steepest."""
    both = allowed[:, :, None] & allowed[:, None, :]
    rise = np.abs(loss[:, :, None] - loss[:, None, :])[both]
    fall = np.abs(cost[:, :, None] - cost[:, None, :])[both]
    is_exchange = (rise > 0) & (fall > 0)
    if not is_exchange.any():
        return np.empty(0)
    slopes = rise[is_exchange] / fall[is_exchange]
    # Beyond both ends: at a slope itself two cells tie.
    return np.geomspace(slopes.min() / 2, slopes.max() * 2, _NUM_MULTIPLIERS)


def uniform(space: Space) -> Assignments:
    """``[P, G]`` one precision for all groups, wherever all may take it."""
    columns = np.flatnonzero(space.problem.grouped.allowed.all(axis=0))
    return np.repeat(columns[:, None], space.num_groups, axis=1)


def given(space: Space, starts: Sequence[Sequence[int]], name: str) -> Assignments:
    """``[P, G]`` from assignments ``[L]`` that the user gave; those that break a budget left out.

    Raises:
        InputError: If one is no assignment of this problem.
    """
    problem = space.problem
    num_layers, num_precisions = problem.loss.values.shape
    found = np.empty((len(starts), space.num_groups), dtype=np.intp)
    for row, start in enumerate(starts):
        columns = np.array(start, dtype=np.intp)
        # numpy would count a negative column from the end.
        is_choice = columns.shape == (num_layers,) and 0 <= columns.min() <= columns.max()
        if not is_choice or columns.max() >= num_precisions or not problem.is_allowed(columns):
            raise InputError(
                f"{name}: a start has one column from 0 to {num_precisions - 1} for each of the "
                f"{num_layers} layers, allowed there and the same for tied layers; got {start}"
            )
        found[row] = space.groups(columns[None])[0]
    return found[space.within(found)]


def distinct(assignments: Assignments) -> Assignments:
    """The same rows, each once, in the order in which they come first."""
    # `np.unique` sorts the rows; their first indices bring the order back.
    _, first = np.unique(assignments, axis=0, return_index=True)
    return assignments[np.sort(first)]
