"""A baseline: every layer takes the cheapest precision that loses no more than all others may."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq.errors import InputError
from mpq.problem.grouped import Grouped
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers._base import Solver
from mpq.solvers.additive.cheapest import cheapest
from mpq.solvers.additive.presolve import Reduced
from mpq.solvers.baselines._base import BEYOND, solved_by


@final
@dataclass(frozen=True)
class Threshold(Solver):
    r"""The same threshold for the loss of every layer, and the cheapest precision below it.

    .. math:: b_\ell = \arg\min_b \{ c_{\ell b} : s_{\ell b} - \min_k s_{\ell k} \le \epsilon \}

    A layer's precision is pushed down while it keeps what it tells: AdaPT's rule for the fewest
    bits (Kummer et al. 2021, arXiv:2107.13490), with the divergence of a weight's histogram for the
    loss (``histogram-kl``). Without ``max_loss`` the threshold is the least at which the budgets
    hold, found by bisection over the losses that there are: of one budget, the answer whose
    largest loss of a layer is least. Departs from the paper in that loss counts above that of the
    layer's best candidate; and precisions are not pushed up where gradients say so, as nothing is
    trained here. The bound beside the answer is the relaxation's.

    Args:
        max_loss: The threshold, in the loss table's unit; ``None``: the least within the budgets.

    Raises:
        InputError: If the threshold is no number of at least 0.
    """

    name: ClassVar[str] = "threshold"
    takes_interactions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    summary: ClassVar[str] = "baseline: each layer's cheapest within one threshold (AdaPT)"

    max_loss: float | None = None

    def __post_init__(self) -> None:
        if self.max_loss is not None and not (isfinite(self.max_loss) and self.max_loss >= 0):
            raise InputError(f"{self.name} needs max_loss >= 0; got {self.max_loss}")

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; several budgets, or a ``max_loss``, may leave it without an answer.

        Raises:
            InputError: If the problem has interactions or costs of pairs of layers.
        """
        why = BEYOND
        if self.max_loss is not None:
            why = (
                f"what loses at most max_loss={self.max_loss:g} is beyond a budget: give a larger "
                "one, or leave it out"
            )
        grouped = problem.grouped
        return solved_by(lambda reduced: self._chosen(reduced, grouped), problem, self.name, why)

    def _chosen(self, reduced: Reduced, grouped: Grouped) -> Columns | None:
        cells = _Cells.of(reduced, grouped)
        if self.max_loss is not None:
            # What the budgets leave of a layer may all lose more.
            return cells.cheapest(self.max_loss) if cells.least <= self.max_loss else None
        thresholds = np.unique(cells.rise[reduced.usable])
        low, high = 0, len(thresholds) - 1
        while low < high:
            middle = (low + high) // 2
            if (reduced.used(cells.cheapest(thresholds[middle])) <= 1).all():
                high = middle
            else:
                low = middle + 1
        return cells.cheapest(thresholds[high])


@final
@dataclass(frozen=True, eq=False)
class _Cells:
    """What groups lose above their best, and cost.

    Args:
        rise: ``[G, B]`` above the least of all that a group may take, whatever the budgets leave.
        cost: ``[G, B]`` all resources in one unit, those of budgets too that every choice meets.
        usable: ``[G, B]``.
    """

    rise: Array
    cost: Array
    usable: Mask

    @classmethod
    def of(cls, reduced: Reduced, grouped: Grouped) -> Self:
        """From a problem, before and after it is reduced."""
        least = np.where(grouped.allowed, grouped.loss, np.inf).min(axis=1, keepdims=True)
        largest = np.abs(grouped.costs).max(axis=(1, 2), initial=0.0)
        unit = np.where(largest > 0, largest, 1.0)[:, None, None]
        return cls(grouped.loss - least, (grouped.costs / unit).sum(axis=0), reduced.usable)

    @property
    def least(self) -> float:
        """The least threshold that some choice of usable cells keeps."""
        return float(np.where(self.usable, self.rise, np.inf).min(axis=1).max(initial=0.0))

    def cheapest(self, threshold: float) -> Columns:
        """``[G]`` the cheapest that lose so little, or the least; of equals that of least loss."""
        rise = np.where(self.usable, self.rise, np.inf)
        within = self.usable & (rise <= np.maximum(threshold, rise.min(axis=1, keepdims=True)))
        return cheapest(rise, self.cost, within)
