"""Levels of formats whose codes stand for numbers of a table, in units of their scale, ascending.

No torch here, as in ``mpq.quantization.formats``.
"""

from array import array
from statistics import NormalDist
from typing import Final

BINARY: Final = (-1.0, 1.0)
"""Signs (Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279)."""
TERNARY: Final = (-1.0, 0.0, 1.0)
"""Signs and 0 (Li et al. 2016, Ternary Weight Networks, arXiv:1605.04711)."""
NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""As published (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E)."""
MXINT8: Final = tuple(code / 64 for code in range(-128, 128))
"""Every code of 8 bits in two's complement, times the specification's 2^-6 (OCP MX 1.0)."""


def normal_levels(bits: int) -> tuple[float, ...]:
    r"""NormalFloat: quantiles of the normal distribution, for numbers that are distributed so.

    With :math:`n = 2^{k - 1}`, :math:`n` evenly spaced probabilities from 1/2 up to

    .. math:: 1 - \tfrac12 \left( \tfrac{1}{2 (2 n - 1)} + \tfrac{1}{2 \cdot 2 n} \right)

    give the levels above 0, and :math:`n - 1` those below, so that 0 is a level: the outermost is
    the mean of what :math:`2n - 1` and :math:`2n` evenly spaced numbers would leave out half a step
    of. All are divided by the largest. That is how the authors computed the 16 that their paper
    publishes; those differ from these by up to 2e-7.
    Reference: Dettmers et al. (2023), QLoRA, arXiv:2305.14314, equation 4.

    Args:
        bits: ``k``, at least 2.

    >>> [round(level, 4) for level in normal_levels(3)]
    [-1.0, -0.535, -0.2469, 0.0, 0.1833, 0.382, 0.623, 1.0]
    """
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (2 * (2 * half - 1)) + 1 / (4 * half)) / 2
    above, below = (_quantiles(outermost, count) for count in (half, half - 1))
    largest = above[-1]
    levels = (*(-x for x in reversed(below)), 0.0, *above)
    # What is stored and computed with is float32, so that every level stands for itself.
    return tuple(array("f", [level / largest for level in levels]))


def _quantiles(outermost: float, count: int) -> list[float]:
    """Of so many probabilities, evenly spaced from 1/2, which is left out, to the outermost."""
    shares = [step / count for step in range(1, count + 1)]
    return [NormalDist().inv_cdf(0.5 + (outermost - 0.5) * share) for share in shares]
