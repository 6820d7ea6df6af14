"""Numbers as the page writes them, and the colours of a heat map."""

from collections.abc import Sequence
from math import floor, log10
from typing import Final

STEPS: Final = 7
"""Colours of the heat map, from the smallest loss to the largest."""

_DIGITS: Final = 4
"""Of numbers of which there are as many as layers times points."""


def rounded(value: float) -> float:
    """To as many digits as a table or a picture of many shows.

    >>> rounded(0.00026304), rounded(123456.0)
    (0.000263, 123500.0)
    """
    return float(f"{value:.{_DIGITS}g}")


def plain(value: float | None, digits: int = 3) -> str:
    """Significant digits; a dash for what is not known.

    >>> plain(0.00026300), plain(1234567.0), plain(None)
    ('0.000263', '1.23e+06', '–')
    """
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def times(ratio: float) -> str:
    """A ratio of two losses, to two digits and without an exponent where it is large.

    >>> times(0.1), times(12.3), times(104.0)
    ('0.10', '12', '100')
    """
    return f"{ratio:#.2g}" if ratio < 9.95 else f"{float(f'{ratio:.2g}'):,.0f}"


def fixed(value: float) -> str:
    """A correlation; a dash where there is none.

    >>> fixed(0.98), fixed(float("nan"))
    ('0.980', '–')
    """
    return "–" if value != value else f"{value:.3f}"


def share(value: float | None, whole: float | None) -> str:
    """A part of a whole in percent.

    >>> share(1.0, 8.0), share(None, 8.0)
    ('12.5 %', '–')
    """
    if value is None or whole is None:
        return "–"
    return f"{100 * value / whole:.1f} %" if whole else "0.0 %"


def heat_of(values: Sequence[Sequence[float]]) -> list[list[int]]:
    """``[L, B]`` which of ``STEPS`` colours every loss has, by its logarithm; 0 for none.

    >>> heat_of([[1e-6, 1e-3, 0.0]])
    [[1, 7, 0]]
    """
    positive = [x for row in values for x in row if x > 0]
    if not positive:
        return [[0 for _ in row] for row in values]
    low, high = log10(min(positive)), log10(max(positive))

    def step(value: float) -> int:
        if not value > 0:
            return 0
        place = (log10(value) - low) / (high - low) if high > low else 1.0
        return 1 + min(floor(place * STEPS), STEPS - 1)

    return [[step(x) for x in row] for row in values]
