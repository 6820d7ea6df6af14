"""The cheapest cells, of which several may be: the one that has the least loss is taken."""

import numpy as np

from mpq._support.arrays import Array, Columns, Mask


def cheapest(loss: Array, cost: Array, usable: Mask) -> Columns:
    """``[G]`` columns of the least cost; of equals that of the least loss, of those the first.

    Args:
        loss: ``[G, B]``.
        cost: ``[G, B]`` in whatever unit: cells of one row are compared.
        usable: ``[G, B]`` where to look; every row has such a cell.
    """
    costs = np.where(usable, cost, np.inf)
    is_cheapest = costs == costs.min(axis=1, keepdims=True)
    return np.asarray(np.where(is_cheapest, loss, np.inf).argmin(axis=1))
