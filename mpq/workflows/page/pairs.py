"""Which pairs of layers add up, and which cancel, at an assignment."""

from typing import Final

import numpy as np

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.report.page.layers import Pair

_SHOWN: Final = 8
"""Pairs that add most, and pairs that cancel most."""
_MOST_ROWS: Final = 1500
"""Rows whose pairs are looked at: a matrix of them is held."""


def why_no_pairs(problem: Problem) -> str:
    """Why there are none, in a sentence."""
    if problem.interactions is None:
        return "The loss of this result is a sum over layers: pairs of them are not known."
    if len(problem.loss.layers) > _MOST_ROWS:
        return f"There are {len(problem.loss.layers):,} rows: pairs of them are too many to list."
    return "No two layers do anything to each other."


def strongest_pairs(problem: Problem, columns: Columns) -> tuple[Pair, ...]:
    """The pairs that change the loss most, those that add up first; none without interactions.

    Of the factor's Gram matrix, as ``Interactions`` has it: rows ``k`` and ``l`` together lose
    :math:`(1 - \\lambda) / S \\sum_s R_{s k z_k} R_{s l z_l}` beside what each loses alone.
    """
    found, count = problem.interactions, len(columns)
    if found is None or count > _MOST_ROWS or count < 2:
        return ()
    rows = found.factor[:, np.arange(count), columns].astype(np.float64)  # [S, R]
    losses = (1 - found.shrinkage) / len(rows) * (rows.T @ rows)
    first, second = np.triu_indices(count, k=1)
    values = losses[first, second]
    order = np.argsort(-values, kind="stable")
    chosen = dict.fromkeys([*order[:_SHOWN].tolist(), *order[-_SHOWN:].tolist()])
    names = problem.loss.layers
    return tuple(
        Pair(names[first[x]], names[second[x]], float(values[x])) for x in chosen if values[x]
    )
