"""Round to nearest, at levels that count errors as the loss does."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.nearest import NearestSolver


@final
@dataclass(frozen=True)
class WeightedNearest(WeightRounding):
    r"""Every weight by itself; codebooks are those of the least error, weighted number by number.

    .. math:: \min_{c_1 \le \dots \le c_n} \sum_k F_k \min_i (w_k - c_i)^2

    for each output channel, with the Fisher information of each of its numbers, damped by a
    hundredth of the channel's mean: the codebook of SqueezeLLM (Kim et al. 2023, arXiv:2306.07629).
    Branches are fitted by it, too: kept weights are those whose errors matter, and stay what they
    were. Other formats become what ``nearest`` makes of them. Labels are drawn from the network,
    where the paper's are the data's. A network that cannot be differentiated has the diagonal of
    the second moment of what a row reads in place of Fisher information.
    """

    name: ClassVar[str] = "weighted-nearest"
    summary: ClassVar[str] = "every weight by itself, codebooks by Fisher information (SqueezeLLM)"
    weighs_numbers: ClassVar[bool] = True

    def prepared(self, moment: Tensor) -> StackSolver:  # noqa: ARG002
        """See ``WeightRounding.prepared``."""
        return NearestSolver()
