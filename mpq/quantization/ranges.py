"""The methods that choose ranges, in one registry: the door that a new one comes in by.

torch is imported only where tensors come: an assignment names its range method, and its file is
read without torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, final

from mpq._support.registry import Registry
from mpq.errors import InputError
from mpq.quantization.aciq import Aciq
from mpq.quantization.entropy_range import Entropy
from mpq.quantization.level_tables import BINARY, TERNARY
from mpq.quantization.loss_range import LossWeighted
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.range_search import RangeSearch

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class MinMax(RangeMethod):
    """Everything fits."""

    name: ClassVar[str] = "minmax"
    summary: ClassVar[str] = "from the smallest to the largest number: nothing saturates"
    reads_extremes_only: ClassVar[bool] = True

    def ends(
        self,
        rows: "Tensor",
        number: NumberFormat,  # noqa: ARG002
        symmetric: bool,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``; the same for every format."""
        rows = rows.float()
        return rows.amin(dim=1), rows.amax(dim=1)


@final
@dataclass(frozen=True)
class Percentile(RangeMethod):
    """All but the tails, half of them at each end.

    Args:
        share: Share of the numbers that the range covers.
    """

    name: ClassVar[str] = "percentile"
    summary: ClassVar[str] = "all but the tails, half of them at each end"

    share: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"percentile covers a share above 0 and at most 1; got {self.share}")

    def ends(
        self,
        rows: "Tensor",
        number: NumberFormat,  # noqa: ARG002
        symmetric: bool,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``; the same for every format."""
        rows, length = rows.float(), rows.shape[1]
        # torch.quantile refuses more than 2**24 numbers; order statistics do as well.
        # kthvalue counts from 1; the same rank from both ends makes both tails equally long.
        tail = round((1 - self.share) / 2 * (length - 1)) + 1
        return rows.kthvalue(tail).values, rows.kthvalue(length + 1 - tail).values


@final
@dataclass(frozen=True)
class LeastSquares(RangeMethod):
    """The range with the least squared error, among shrunken copies of the full one.

    Of ``binary`` and ``ternary``, whose numbers have one magnitude, the best in closed form; of
    ``binary`` by absolute errors as well: the median magnitude.

    Args:
        num_shrinks: Ranges that are tried, from the full one down to a fifth of it, in equal steps;
            halves where scales are powers of two.
        num_halvings: How often both neighbours of a row's best are tried then, half as far away
            each time. Of 40 ranges without halvings the squared error is larger, in about twice
            the time.
        norm: Power of the errors that are summed: 2 for squared ones, 1 for absolute ones, more
            where the largest error counts most; GPTQ's published code has 2.4 (Frantar et al. 2022,
            arXiv:2210.17323).

    Raises:
        InputError: If there is no range to try, or the norm is not a positive number up to 16.
    """

    name: ClassVar[str] = "mse"
    summary: ClassVar[str] = "least squared error among shrunken ranges (default)"

    num_shrinks: int = 16
    norm: float = 2.0
    num_halvings: int = 3

    def __post_init__(self) -> None:
        if self.num_shrinks < 1 or self.num_halvings < 0:
            raise InputError(
                f"mse tries at least 1 range; got {self.num_shrinks}, and {self.num_halvings} "
                "halvings"
            )
        if not 0 < self.norm <= 16:  # a higher power is beyond float32
            raise InputError(f"mse:norm is above 0 and at most 16; got {self.norm}")

    def ends(
        self, rows: "Tensor", number: NumberFormat, symmetric: bool
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``."""
        if number.table == BINARY and self.norm == 1:
            scale = rows.float().abs().median(dim=1).values
            return -scale, scale
        if number.table in (BINARY, TERNARY) and self.norm == 2:
            scale = sign_scale(rows.float(), number.has_zero)
            return -scale, scale
        search = RangeSearch(rows, number, symmetric, self.norm)
        return search.ends(self.num_shrinks, self.num_halvings)

    def fraction_ends(self, rows: "Tensor", number: NumberFormat) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.fraction_ends``; of squared errors fitted to the codes in turn."""
        low, high = super().fraction_ends(rows, number)
        return (
            least_squares_ends(rows.float(), number, low, high) if self.norm == 2 else (low, high)
        )


def least_squares_ends(
    rows: "Tensor", number: NumberFormat, low: "Tensor", high: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """``[O]`` low and high, from others on: codes, and the line that fits these best, in turn.

    No turn raises the squared error.

    Args:
        rows: ``[O, K]`` float32.
        number: An integer format.
        low: ``[O]`` what code 0 stands for.
        high: ``[O]`` what the last code stands for.
    """
    import torch

    last = 2**number.bits - 1
    middle = rows.mean(dim=1, keepdim=True)
    for _ in range(TURNS):
        step = ((high - low) / last).clamp_min(torch.finfo(torch.float32).tiny)
        codes = ((rows - low[:, None]) / step[:, None]).round().clamp(0, last)
        centre = codes.mean(dim=1, keepdim=True)
        spread = (codes - centre).square().sum(dim=1)
        slope = ((codes - centre) * (rows - middle)).sum(dim=1) / spread.clamp_min(1e-9)
        # A row of one code, of numbers that are all the same, or too large for sums has no line.
        is_line = (spread > 0) & (slope > 0) & slope.isfinite()
        fitted = middle[:, 0] - slope * centre[:, 0]
        low = torch.where(is_line, fitted, low)
        high = torch.where(is_line, fitted + slope * last, high)
    return low, high


def sign_scale(rows: "Tensor", has_zero: bool) -> "Tensor":
    r"""``[O]`` the magnitude :math:`s` that is best for signs, with or without 0.

    The ``k`` largest magnitudes :math:`a` become :math:`s`, their mean; of all ``k`` that is best
    which removes most of the squared error:

    .. math:: \max_k \frac1k \left( \sum_{i \le k} a_{(i)} \right)^2

    Without 0 all numbers become :math:`\pm s` (Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279).
    Ternary Weight Networks (Li et al. 2016, arXiv:1605.04711) take 0.7 times the mean magnitude as
    the threshold, an approximation for normal and uniform weights; this is their optimum itself,
    by sorting.

    Args:
        rows: ``[O, K]`` float32.
        has_zero: Whether numbers may become 0.
    """
    import torch

    magnitudes = rows.abs()
    if not has_zero:
        return magnitudes.mean(dim=1)
    sums = magnitudes.sort(dim=1, descending=True).values.double().cumsum(dim=1)
    counts = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    best = (sums.square() / counts).argmax(dim=1, keepdim=True)
    return (sums.gather(1, best) / (best + 1)).float()[:, 0]


TURNS: Final = 20
"""Of codes and ends, where a zero point is a fraction."""
RANGE_METHODS: Registry[RangeMethod] = Registry(
    "range method",
    (MinMax, Percentile, LeastSquares, LossWeighted, Aciq, Entropy),
    group="mpq.ranges",
)
"""Every range method, by the name that ``--weight-range`` and ``--activation-range`` take."""


@final
@dataclass(frozen=True)
class Ranges:
    """How the ranges of integer formats are chosen.

    Args:
        weight: Rule for a weight's range, one of ``RANGE_METHODS``.
        activation: Rule for the range of a layer's input over the calibration examples.

    Raises:
        InputError: If there is no such rule, its options do not fit, or it is not for weights.
    """

    weight: str = "mse"
    activation: str = "mse"

    def __post_init__(self) -> None:
        weight, _ = (RANGE_METHODS.build(m) for m in (self.weight, self.activation))
        # Refused now, and not after a pass over the data.
        if weight.reads_gradients:
            raise InputError(
                f"weight_range {self.weight!r} counts errors by gradients of a layer's inputs, and "
                "a weight is none: take it as --activation-range, and for weights another method "
                "of `mpq ranges` (--rounding looks at gradients)"
            )
