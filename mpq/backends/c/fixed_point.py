r"""Numbers without floating point: dyadic ratios, and sums with a binary point.

.. math:: r \approx m \, 2^{-s}, \quad 2^{30} \le m < 2^{31}, \quad
    \mathrm{scaled}(v) = \lfloor (v \, m + 2^{s - 1}) \, 2^{-s} \rfloor

so that a product with a scale is an integer product and a shift (Yao et al. 2021, HAWQ-V3, ICML,
arXiv:2011.10680). We keep ``FRACTION`` bits behind the point until all of an output is added up:
its sum of products, its bias and its shortcut are rounded to a code once and not one by one.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from mpq.errors import ModelError

FRACTION: Final = 14
"""Bits behind the binary point, in units of an output's code."""
LARGEST_SHIFT: Final = 62
Integers = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Ratios:
    """Positive numbers as a product and a shift.

    Args:
        multipliers: ``[O]``, or ``[1]`` for all.
        shifts: The same shape.
    """

    multipliers: Integers
    shifts: Integers

    @classmethod
    def of(cls, ratios: npt.ArrayLike) -> "Ratios":
        """The nearest ones.

        Args:
            ratios: ``[O]`` positive numbers.

        Raises:
            ModelError: If one is ``2^31`` or more.
        """
        numbers = np.atleast_1d(np.asarray(ratios, dtype=np.float64))
        _, exponents = np.frexp(numbers)  # of mantissas of at least a half
        shifts = np.minimum(31 - exponents, LARGEST_SHIFT)
        multipliers = np.rint(np.ldexp(numbers, shifts))
        # Rounded up to the next power of two.
        is_over = multipliers >= 2**31
        multipliers, shifts = np.where(is_over, multipliers / 2, multipliers), shifts - is_over
        if (shifts < 0).any():
            raise ModelError(f"a ratio of scales is {numbers.max():.3g}, which is too large")
        return cls(multipliers.astype(np.int64), shifts.astype(np.int64))

    def scaled(self, values: Integers) -> Integers:
        """``[O, ...]`` values, each times its ratio, rounded half up."""
        axes = (-1, *(1 for _ in values.shape[1:]))
        multipliers, shifts = self.multipliers.reshape(axes), self.shifts.reshape(axes)
        # A shift by -1 would be undefined.
        halves = np.where(shifts > 0, np.int64(1) << np.maximum(shifts - 1, 0), 0)
        return np.asarray((values * multipliers + halves) >> shifts, dtype=np.int64)


def point(bits: int) -> int:
    """Bits behind the point in sums of a tensor: none in 32-bit outputs."""
    return 0 if bits == 32 else FRACTION


def rounded_off(sums: Integers, fraction: int) -> Integers:
    """Whole codes of sums with a binary point, half up."""
    return (sums + (1 << (fraction - 1) if fraction else 0)) >> fraction
