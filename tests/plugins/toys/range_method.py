"""A range method of another package: a share of the full range."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod


@final
@dataclass(frozen=True)
class ToyRange(RangeMethod):
    """A share of the way from 0 to each end.

    Args:
        share: Of the way.
    """

    name: ClassVar[str] = "toy-share"
    summary: ClassVar[str] = "a share of the full range"
    reads_extremes_only: ClassVar[bool] = True

    share: float = 0.5

    def ends(self, rows: Tensor, number: NumberFormat, symmetric: bool) -> tuple[Tensor, Tensor]:
        """See ``RangeMethod.ends``."""
        rows = rows.float() * self.share
        return rows.amin(dim=1), rows.amax(dim=1)
