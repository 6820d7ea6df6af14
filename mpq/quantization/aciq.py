"""ACIQ: clipping in closed form, for numbers that are distributed as Laplace's or Gauss's."""

from dataclasses import dataclass
from functools import cache
from math import erf, exp, pi, sqrt
from typing import TYPE_CHECKING, ClassVar, final

from mpq.errors import InputError
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTIONS = ("auto", "gauss", "laplace")


@final
@dataclass(frozen=True)
class Aciq(RangeMethod):
    r"""The range with the least expected squared error of a Gauss or a Laplace distribution.

    Numbers within :math:`\mu \pm \alpha` are rounded to :math:`2^M` even steps, others saturate:

    .. math:: \frac{\alpha^2}{3 \cdot 4^M} + 2 \int_\alpha^\infty f(x) (x - \alpha)^2 dx

    is least at :math:`\alpha = b \, W(3 \cdot 4^M)` for Laplace's distribution, with its mean
    absolute deviation :math:`b` and Lambert's :math:`W`, and at a multiple of the standard
    deviation for Gauss's, that is found numerically once for every :math:`M`. Numbers that are not
    below 0 are taken for one half of a distribution around 0, with one bit more, and zeros among
    them for what a ReLU cut off. Of both distributions the likelier one is taken, row by row, where
    the paper's code looks at squared errors. Ends are never beyond the numbers. Steps are taken for
    even and bits for all there are, also of a floating-point format.
    Reference: Banner et al. (2018), arXiv:1810.05723.

    Args:
        distribution: ``gauss``, ``laplace``, or ``auto`` for the likelier one.

    Raises:
        InputError: If there is no such distribution.
    """

    name: ClassVar[str] = "aciq"
    summary: ClassVar[str] = "least expected squared error of a Gauss or Laplace distribution"

    distribution: str = "auto"

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"aciq:distribution is one of {', '.join(DISTRIBUTIONS)}; got {self.distribution!r}"
            )

    def ends(
        self,
        rows: "Tensor",
        number: NumberFormat,
        symmetric: bool,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``."""
        import torch

        rows = rows.float()
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        is_half = low >= 0
        counts = torch.where(is_half[:, None], rows > 0, torch.ones_like(rows, dtype=torch.bool))
        total = counts.sum(dim=1).clamp_min(1)
        middle = torch.where(is_half, torch.zeros_like(low), rows.mean(dim=1))
        apart = (rows - middle[:, None]).abs() * counts
        mean = apart.sum(dim=1) / total
        # In units of the largest: squares below 1e-45 are 0, those beyond 1e38 infinite.
        largest = apart.amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        squares = (apart / largest[:, None]).square()
        deviation = (squares.sum(dim=1) / total).sqrt() * largest
        is_gauss = self._is_gauss(mean, deviation)

        def clip(bits: int) -> "Tensor":
            return torch.where(
                is_gauss, deviation * gauss_multiple(bits), mean * laplace_multiple(bits)
            )

        reach = torch.where(is_half, clip(number.bits + 1), clip(number.bits))
        return torch.maximum(low, middle - reach), torch.minimum(high, middle + reach)

    def _is_gauss(self, mean: "Tensor", deviation: "Tensor") -> "Tensor":
        import torch

        if self.distribution != "auto":
            return torch.full_like(mean, self.distribution == "gauss", dtype=torch.bool)
        # Log-likelihoods, per number: -log(2 b) - 1 and -log(2 pi s^2) / 2 - 1 / 2.
        return deviation * sqrt(2 * pi) < mean * (2 * exp(0.5))


@cache
def laplace_multiple(bits: int) -> float:
    """The best clipping of a Laplace distribution, in mean absolute deviations.

    >>> [round(laplace_multiple(bits), 2) for bits in (2, 3, 4)]
    [2.83, 3.9, 5.03]
    """
    from scipy.special import lambertw

    return float(lambertw(3.0 * 4.0**bits).real)


@cache
def gauss_multiple(bits: int) -> float:
    """The best clipping of a Gauss distribution, in standard deviations.

    >>> [round(gauss_multiple(bits), 2) for bits in (2, 3, 4)]
    [1.71, 2.15, 2.56]
    """
    from scipy.optimize import minimize_scalar

    def error(clip: float) -> float:
        outside = (clip**2 + 1) * (1 - erf(clip / sqrt(2)))
        return outside - clip * sqrt(2 / pi) * exp(-(clip**2) / 2) + clip**2 / (3 * 4.0**bits)

    return float(minimize_scalar(error, bounds=(0.1, 10.0), method="bounded").x)
