"""Costs of pairs of groups in a linear program: products of choices as variables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pulp

from mpq._support.arrays import Array, Columns, Mask
from mpq.problem.pairwise_costs import PairwiseCosts


@final
@dataclass(frozen=True, eq=False)
class Product:
    """A variable that is 1 where two groups take some columns, each its own, and else 0.

    Args:
        variable: Variable of the model: 1 where both groups take one of the columns.
        groups: Indices of the two groups, as the problem counts them.
        columns: Columns of each group that the variable stands for.
        costs: ``[1 + R]`` in the loss and in every budget, where it is 1.
    """

    variable: Any
    groups: tuple[int, int]
    columns: tuple[list[int], list[int]]
    costs: Array

    def value(self, columns: Columns) -> float:
        """What the variable is for ``columns [G]``."""
        taken = zip(self.groups, self.columns, strict=True)
        return float(all(columns[group] in either for group, either in taken))


def linearised_products(
    model: Any, pairwise: PairwiseCosts, usable: Mask, cells: Mapping[tuple[int, int], Any]
) -> list[Product]:
    r"""Adds variables ``y`` and the rows that make them products of the choices ``x``.

    .. math:: \sum_c y_{bc} = x_{gb}, \quad \sum_b y_{bc} = x_{hc}, \quad y \ge 0

    the local marginal polytope (Schlesinger 1976; Werner 2007, doi:10.1109/TPAMI.2007.1036): the
    tightest linear relaxation of a pair, whatever its costs, and with whole ``x`` exact. Columns
    that cost the same beside every column of the other group share a variable, so that converting
    between two kinds of formats takes two by two, however many formats there are.

    Args:
        model: The ``pulp.LpProblem`` that has the choices; is added to.
        pairwise: Costs of budgets in units of what each leaves free.
        usable: ``[G, B]`` cells that may be taken; others get no variable.
        cells: Variable of every usable cell of the groups that are in a pair.
    """
    found = []
    for k, (ends, values) in enumerate(zip(pairwise.ends, pairwise.values, strict=True)):
        first, second = (np.flatnonzero(usable[group]) for group in ends)
        block = values[:, first][:, :, second]  # [1 + R, b, c]
        rows, columns = _alike(block, first), _alike(block.swapaxes(1, 2), second)
        sums: list[list[tuple[Any, float]]] = [[] for _ in (*rows, *columns)]
        for i, j in np.ndindex(len(rows), len(columns)):
            costs = values[:, rows[i][0], columns[j][0]]
            if (costs[1:] > 1).any():
                continue  # alone beyond a budget: never 1
            # Continuous: whole choices leave it only 0 or 1, and nothing has to be branched on.
            variable = model.add_variable(f"y_{k}_{i}_{j}", 0)
            found.append(Product(variable, ends, (rows[i], columns[j]), costs))
            sums[i].append((variable, 1.0))
            sums[len(rows) + j].append((variable, 1.0))
        sides = [(ends[0], r) for r in rows] + [(ends[1], c) for c in columns]
        for terms, (group, alike) in zip(sums, sides, strict=True):
            taken = [(cells[group, column], -1.0) for column in alike]
            model += pulp.LpAffineExpression([*terms, *taken]) == 0
    return found


def _alike(block: Array, columns: Columns) -> list[list[int]]:
    """Columns of the middle axis in sets with the same costs, by the smallest of each."""
    sets: dict[bytes, list[int]] = {}
    for costs, column in zip(block.swapaxes(0, 1), columns.tolist(), strict=True):
        # Bit for bit: columns that differ by rounding keep variables of their own: only slower.
        sets.setdefault(costs.tobytes(), []).append(column)
    return list(sets.values())
