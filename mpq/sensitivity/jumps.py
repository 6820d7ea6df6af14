"""What lies before a choice: predictions raised by the jumps that a few measurements show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from mpq._support.arrays import Array
from mpq.problem.cost_table import CostTable
from mpq.sensitivity.checked import APART
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.spot_check import few_examples, measured_rows

MAX_LAYERS: Final = 16
"""Layers that are measured to tell what the others lose. With three precisions and a pass of the
original, that takes at most 49 passes over the few examples of a spot check."""
_LEAST: Final = 1 / 3
"""Of the median of all layers' jumps: what a layer has that shows fewer, as those may be unseen."""


@final
@dataclass(frozen=True, eq=False)
class Jumps:
    """Predictions of layers before a choice, beside what a few of them lose.

    Args:
        table: ``[L, B]`` with predictions that were raised.
        raised: Layers whose predictions were raised: all, or none.
        sampled: Layers that were measured.
        forward_passes: What that took, in passes over the calibration examples.
    """

    table: CostTable
    raised: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()
    forward_passes: float = 0.0


def raised_by_jumps(on: Estimation, table: CostTable, names: Sequence[str]) -> Jumps:
    r"""Adds what another choice costs to what a smooth network would lose.

    An error of size :math:`\varepsilon` loses :math:`s \sim \varepsilon^2` where everything is
    smooth, which gradients tell. It turns a choice behind it with a probability that grows as
    :math:`\varepsilon`, and what that costs does not depend on it: hence

    .. math:: s'_{\ell b} = s_{\ell b} + \kappa_\ell \sqrt{s_{\ell b}}

    The :math:`\kappa` are found by measuring at most ``MAX_LAYERS`` of the layers, spread over the
    network, at the precision that loses most, a middle one and the one that loses least, on few
    examples. There a choice turns seldom, for many layers never at fine precisions: so a layer is
    given a third of the median of all at least, and one that was not measured the median. Where the
    sample loses what is predicted, nothing is raised. Too dear is the safer side: a fine precision
    at which no choice turned in the data is often predicted to lose 10 times what was measured.

    Args:
        on: What was asked of the estimator.
        table: ``[L, B]`` its answer, in the unit of the network's metric.
        names: Layers before a choice, in the order of the network's.
    """
    rows = np.array([on.names.index(name) for name in names], dtype=int)
    if not len(rows) or not on.tried:
        return Jumps(table)
    columns = _columns(on, table.values[rows])
    chosen = np.unique(np.linspace(0, len(rows) - 1, MAX_LAYERS).round().astype(int))
    sampled = tuple(on.names[row] for row in rows[chosen])
    few = few_examples(on)
    measured = measured_rows(few, sampled, columns, "layers before a choice")  # [S, A]
    share = few.data.num_examples / on.data.num_examples
    done = Jumps(table, (), sampled, (measured.size + 1) * share)
    predicted = table.values[np.ix_(rows[chosen], columns)]
    # Of all layers together: of a single one's the few examples say too little.
    if not (measured.sum(axis=0) > APART * predicted.sum(axis=0)).any():
        return done
    values = table.values.copy()
    values[rows] += _jumps(measured, predicted, chosen, len(rows))[:, None] * np.sqrt(values[rows])
    return replace(done, table=replace(table, values=values), raised=tuple(names))


def _columns(on: Estimation, values: Array) -> list[int]:
    """The precisions that lose most, in the middle and least; fewer where fewer are tried."""
    order = sorted(on.tried, key=lambda column: -float(values[:, column].sum()))
    return list(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))


def _jumps(measured: Array, predicted: Array, chosen: Array, count: int) -> Array:
    r"""``[count]`` the :math:`\kappa` of every layer, from those measured ``[S, A]``."""
    excess = np.maximum(measured - predicted, 0.0)
    # A cell that is predicted to lose nothing tells nothing of the ratio.
    root = np.sqrt(predicted)
    own = np.divide(excess, root, out=np.zeros_like(excess), where=root > 0).mean(axis=1)  # [S]
    # Where most layers turned nothing, the others speak for them.
    middle = float(np.median(own)) or float(own.mean())
    found = np.full(count, middle)
    found[chosen] = np.maximum(own, _LEAST * middle)
    return found
