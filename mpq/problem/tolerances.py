"""What rounding in float64 may change, named by what it bounds; all are relative."""

from sys import float_info
from typing import Final

LIMIT: Final = 1e-12
"""Slack of every comparison with a limit: what adding up in another order may change.

A limit within the rounding of its own sum is met: what an assignment uses is the correctly rounded
sum ``math.fsum`` of its cells, and it is within the budget if that is at most
``limit + LIMIT * abs(limit)``, both operations in float64. Every solver decides by this rule
(``is_within``), also whether a problem is infeasible; none has a tolerance of its own."""
EQUAL_SUMS: Final = 1e-12
"""Difference of two sums of the same cells, or of two rates made of them, that is only rounding."""
LAST_DIGITS: Final = 4 * float_info.epsilon
"""Of all numbers in a sum without their signs: what adding them up in float64 may change."""
DIFFERENCE: Final = 1e-15
"""Share of a pair's largest cost that is only what two subtractions leave."""
SEARCHED_SUMS: Final = 1e-13
"""What the partial sums of a core search may differ by: few terms, hence less than ``EQUAL_SUMS``.

Relative to the losses that are added up."""
DUAL_BOUND: Final = 1e-10
"""Error of a Lagrangian bound, relative to everything that is added up in it."""
EQUAL_LOSSES: Final = 1e-9
"""Difference at which two losses of a quadratic problem are equal: its bounds are no closer."""
PROVED_BOUND: Final = 1e-9
"""Error that a bound may have from the arithmetic of whoever proved it, such as HiGHS.

Relative to the numbers that make up the loss (``mpq.solvers.proofs.rounding``); what is further off
is a contradiction."""


def is_within(amount: float, limit: float) -> bool:
    """Whether an amount is at most a limit, up to ``LIMIT``.

    >>> is_within(0.1 + 0.2, 0.3), is_within(-0.3, -(0.1 + 0.2)), is_within(0.31, 0.3)
    (True, True, False)
    """
    # The absolute value: a factor 1 + LIMIT would tighten a limit below 0, where savings of pairs
    # or a constant can lead.
    return amount <= limit + LIMIT * abs(limit)
