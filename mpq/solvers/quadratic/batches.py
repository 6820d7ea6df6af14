"""Many exchanges at once, where one after the other would take too long."""

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.solvers.quadratic.moves import Quadratic


def batch(quadratic: Quadratic, held: Columns, single: Array, extra: Array, room: Array) -> Columns:
    """The best of all beginnings of a list of moves, one of each group, by what each gains alone.

    Moves that gain alone may lose together. Their rows are added up one after the other, so that
    what any beginning of the list gains is exact; the first move alone is one of them, so that the
    loss always falls.

    Args:
        quadratic: Loss and budgets, without costs of pairs of groups.
        held: ``[G]`` moves that are held.
        single: ``[M]`` changes of the loss by each move alone; at least one that fits is below 0.
        extra: ``[R, M]`` changes of the costs.
        room: ``[R]`` what is free.
    """
    gains = np.where((extra <= room[:, None]).all(axis=0), single, np.inf)
    least = np.minimum.reduceat(gains, quadratic.starts)[quadratic.group]
    best = np.flatnonzero((gains == least) & (gains < 0))
    # Of equal moves of a group the first.
    best = best[np.unique(quadratic.group[best], return_index=True)[1]]
    best = best[np.argsort(gains[best], kind="stable")]
    old = held[quadratic.group[best]]
    rows = np.cumsum(quadratic.rows[best] - quadratic.rows[old], axis=0)  # [K, S]
    change = rows @ quadratic.rows[held].sum(axis=0)
    change += 0.5 * np.einsum("ks,ks->k", rows, rows)
    change += np.cumsum(quadratic.linear[best] - quadratic.linear[old])
    fits = (np.cumsum(extra[:, best], axis=1) <= room[:, None]).all(axis=0)
    # The first alone was asked before, by a sum in another order: it stays in any case.
    change = np.where(fits, change, np.inf)
    change[0] = min(change[0], gains[best[0]])
    return best[: int(np.argmin(change)) + 1]
