"""What a score of whole networks loses where a single layer is quantized: a call for every cell."""

from collections.abc import Collection

import numpy as np

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.sensitivity.estimation import Estimation, ScoreDrop


def drops(on: Estimation, drop: ScoreDrop, rows: Collection[int] | None = None) -> Array:
    """``[L, B]`` drops of a score; one that rises costs 0: what chance gains is not to be bought.

    Args:
        on: Network, quantizer and candidates.
        drop: Of the score.
        rows: The only layers that are asked about, the others cost 0; ``None``: all.
    """
    values = np.zeros(on.shape)
    asked = range(on.shape[0]) if rows is None else rows
    cells = [(row, column) for row in asked for column in on.tried]
    for row, column in track(cells, f"calls of the score, {len(cells)}"):
        chosen = {on.names[row]: on.candidates[column]}
        values[row, column] = drop(on.network, on.quantizer, chosen)
    return np.maximum(values, 0.0)


def own_drop(on: Estimation) -> ScoreDrop:
    """Of the task's own score.

    Raises:
        InputError: If there is none.
    """
    if on.score_drop is None:
        raise InputError(
            "measured:score=own asks the task's own score, and there is none: give one (score, "
            "--score)"
        )
    return on.score_drop
