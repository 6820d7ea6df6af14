"""What a score of whole networks loses where a single layer is quantized: a call for every cell."""

from collections.abc import Callable, Collection

import numpy as np
from torch import nn

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.quantization.quantizer import quantized
from mpq.sensitivity.estimation import Estimation

Drop = Callable[[nn.Module], float]
"""How much worse the score of a network is than the original's."""


def drops(on: Estimation, drop: Drop, rows: Collection[int] | None = None) -> Array:
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
        with quantized(on.network, chosen, on.quantizer):
            values[row, column] = drop(on.network.module)
    return np.maximum(values, 0.0)


def own_drop(on: Estimation) -> Drop:
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
