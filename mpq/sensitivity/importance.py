"""From one number per layer to what every layer costs at every precision."""

from collections.abc import Sequence

import numpy as np

from mpq._support.arrays import Array
from mpq.problem.cost_table import WEIGHTS, CostTable
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.weight_error import channel_errors, relative_errors


def importance_table(on: Estimation, importance: Sequence[float] | Array, name: str) -> CostTable:
    r"""Importance times the relative squared error of rounding.

    .. math:: s_{\ell b} = \iota_\ell \Bigl( \frac{\lVert Q_b(W_\ell) - W_\ell \rVert^2}{\lVert
        W_\ell \rVert^2} + \frac{E (Q_b(x) - x)^2}{E x^2} \Bigr), \quad x \sim N(0, 1)

    Papers that give one importance per layer hand out bits by its rank, or maximise importance
    times bits. Here it weighs the error that bits leave, which falls to about a quarter per bit, as
    ``WeightError`` has it, so that any format can be priced and any solver can read the table.

    Args:
        on: ``L`` layers and ``B`` candidates; no example is read.
        importance: ``[L]``, at least 0.
        name: Name of the estimator, which the table has, too.

    Returns:
        ``[L, B]`` in the unit ``relative``, with the importance as scores of the weights.

    Raises:
        ModelError: If an importance is not finite.
    """
    column = np.asarray(importance, dtype=np.float64)[:, None]
    with np.errstate(invalid="ignore"):  # an infinite importance is refused by the table
        values = column * relative_errors(on, channel_errors(on))
    return on.table(values, name, "relative", {WEIGHTS: column[:, 0]})
