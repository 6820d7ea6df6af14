"""What the user's own score loses where a single layer is quantized: a call for every cell."""

import numpy as np

from mpq._support.progress import track
from mpq.errors import InputError
from mpq.quantization.quantizer import quantized
from mpq.sensitivity._base import Sensitivity
from mpq.sensitivity.estimation import Estimation


def score_drops(on: Estimation, estimator: str) -> Sensitivity:
    """``[L, B]`` drops of the score; one that rises costs 0: what chance gains is not to be bought.

    Args:
        on: Network, quantizer, candidates, and the score.
        estimator: What the table is called.

    Raises:
        InputError: If there is no score.
    """
    drop = on.score_drop
    if drop is None:
        raise InputError(
            "measured:score=own asks the task's own score, and there is none: give one (score, "
            "--score)"
        )
    values = np.zeros(on.shape)
    cells = [(row, column) for row in range(on.shape[0]) for column in on.tried]
    for row, column in track(cells, f"calls of the score, {len(cells)}"):
        chosen = {on.names[row]: on.candidates[column]}
        with quantized(on.network, chosen, on.quantizer):
            values[row, column] = drop(on.network.module)
    return Sensitivity(on.table(np.maximum(values, 0.0), estimator, "score"))
