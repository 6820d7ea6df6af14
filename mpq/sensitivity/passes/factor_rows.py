"""Rows of an interaction factor, gathered in bounded memory, with the amount of shrinkage."""

from typing import final

import numpy as np

from mpq._support.arrays import Array
from mpq.problem.interactions import Interactions
from mpq.sensitivity.passes.checkpoint import State

_MIN_KEPT = 4096
"""Rows that are kept in any case; replacing them takes time."""


@final
class FactorRows:
    r"""Gathers ``[S, L, B]`` rows; keeps ``2 L B`` of them, or 4,096.

    A row is that of one example, or the sum of several whose probes have independent signs: then
    the mean of its square is the sum of theirs.

    Only :math:`\sum_s R_s R_s^T` matters, so that many rows can be replaced by the triangle of
    their QR decomposition, exactly.

    Args:
        num_layers: Number of layers, ``L``.
        num_precisions: Number of candidates, ``B``.
    """

    def __init__(self, num_layers: int, num_precisions: int) -> None:
        self._shape = (num_layers, num_precisions)
        self._rows = np.zeros((0, num_layers * num_precisions))
        self._count = 0
        self._examples = 0
        self._products = 0.0
        self.scale = 1.0
        """What table and factor are multiplied by, the factor by its root."""

    def add(self, rows: Array, num_examples: int) -> None:
        """More probes.

        Args:
            rows: ``[S, L, B]`` projected changes of the output, a row per example or group.
            num_examples: How many examples the rows hold.
        """
        self._count += len(rows)
        self._examples += num_examples
        # Products of four numbers, for ``shrinkage``: after the QR below, single rows are gone.
        squares = rows**2
        across = squares.sum(axis=(1, 2)) ** 2 - (squares.sum(axis=2) ** 2).sum(axis=1)
        self._products += float(across.sum())
        held = np.concatenate([self._rows, rows.reshape(len(rows), -1)])
        self._rows = _shortened(held)

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        counts = [self._count, self._examples, self._products]
        return {"rows": self._rows, "counts": np.array(counts)}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        # Those of several processes, put together, may be many.
        self._rows = _shortened(state["rows"])
        count, examples, self._products = state["counts"].tolist()
        self._count, self._examples = int(count), int(examples)

    @property
    def table(self) -> Array:
        """``[L, B]`` loss of changing one layer alone: half the mean square of its rows."""
        alone = 0.5 * (self._rows**2).sum(axis=0).reshape(self._shape)
        return np.asarray(self.scale * alone / self._examples)

    def shrinkage(self) -> float:
        r"""How far pairs of layers should be shrunk towards independence, from 0 to 1.

        .. math:: \lambda = \frac{\sum \widehat{\mathrm{Var}}(\hat G_{ij})}{\sum \hat G_{ij}^2},
            \quad \widehat{\mathrm{Var}}(\hat G_{ij})
            = \frac1S \bigl(\mathrm{mean}_s R_{si}^2 R_{sj}^2 - \hat G_{ij}^2\bigr)

        summed over cells ``i``, ``j`` of different layers: the share of squared error that is
        sampling noise, in closed form. Ledoit and Wolf (2004, doi:10.1016/S0047-259X(03)00096-4)
        with the diagonal target of Schaefer and Strimmer (2005, doi:10.2202/1544-6115.1175), here
        block-diagonal, because a layer takes one precision.
        """
        rows = self._rows
        by_layer = rows.reshape(len(rows), *self._shape)
        own = np.einsum("slb,sld->lbd", by_layer, by_layer) / self._count
        # Both Gram matrices of a factor have the same norm.
        gram = (rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows) / self._count
        # Within a layer nothing is shrunk: a layer takes one precision.
        power = float((gram**2).sum() - (own**2).sum())
        variance = (self._products / self._count - power) / self._count
        # Without pairs, or with rows of 0, there is nothing to keep.
        return float(np.clip(variance / power, 0.0, 1.0)) if power > 0 else 1.0

    def interactions(self, shrinkage: float | None = None) -> Interactions:
        """The factor; ``shrinkage`` as given, or else in closed form."""
        # `Interactions` takes the mean over its rows, however few are left: made one over examples.
        scaled = self._rows * np.sqrt(self.scale * len(self._rows) / self._examples)
        share = self.shrinkage() if shrinkage is None else shrinkage
        return Interactions(scaled.reshape(-1, *self._shape), share)


def _shortened(rows: Array) -> Array:
    """Rows with the same products, where there are many."""
    # A QR leaves as many rows as columns: twice as many make it a rare event.
    is_long = len(rows) > max(_MIN_KEPT, 2 * rows.shape[1])
    return np.asarray(np.linalg.qr(rows, mode="r")) if is_long else rows
