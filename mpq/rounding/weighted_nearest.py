"""Round to nearest, at levels that count errors as the inputs do."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.nearest import NearestSolver


@final
@dataclass(frozen=True)
class WeightedNearest(WeightRounding):
    r"""Every weight by itself; codebooks are those of the least error that the inputs weigh.

    .. math:: \min_{c_1 \le \dots \le c_n} \sum_k H_{kk} \min_i (w_k - c_i)^2

    for each output channel, with the diagonal of the second moment of what its weights read. It is
    the codebook of SqueezeLLM (Kim et al. 2023, arXiv:2306.07629), which weighs each number by its
    own Fisher information: that of a number is its input's moment, times a factor of the channel,
    where inputs and gradients of outputs do not hang together. Half of the moment is weighted by
    squared gradients of all channels. Other formats become what ``nearest`` makes of them, but for
    branches, which are fitted to the moment.
    """

    name: ClassVar[str] = "weighted-nearest"
    summary: ClassVar[str] = "every weight by itself, codebooks weighted by inputs (SqueezeLLM)"

    def prepared(self, moment: Tensor) -> StackSolver:  # noqa: ARG002
        """See ``WeightRounding.prepared``."""
        return NearestSolver()
