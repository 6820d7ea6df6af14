"""What a little more of the frontier's resource would buy, and what a little less would cost."""

from math import isnan
from typing import Final

from mpq.report.amount import amount
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.page.numbers import plain

_STEPS: Final = {
    "bytes": (1024.0, "KiB"),
    "seconds": (1e-3, "ms"),
    "joules": (1e-3, "mJ"),
    "bits": (1.0, "bit"),
    "bitops": (1e6, "million bit operations"),
}
"""What "one more" is, where one of the unit itself is too little or too much."""


def price_of(frontier: Frontier, cost: float | None) -> str:
    """The frontier's slope on both sides of what the answer uses; empty where there is none.

    Args:
        frontier: Of the same problem.
        cost: Of the answer, of the frontier's resource; ``None``: not known.
    """
    if cost is None:
        return ""
    known = sorted((p for p in frontier.points if not isnan(p.cost)), key=lambda p: p.cost)
    # What is written in a file differs in its last digit.
    below = [p for p in known if p.cost <= cost * (1 + 1e-9)]
    if not below:
        return ""
    here, above = below[-1], known[len(below) :]
    size, word = _STEPS.get(frontier.unit, (1.0, frontier.unit))
    told = []
    if above:
        told.append(f"one {word} more saves {_slope(frontier, here, above[0], size)}")
    if below[:-1]:
        told.append(f"one {word} less costs {_slope(frontier, below[-2], here, size)}")
    name = frontier.resource.replace("_", " ")
    at = amount(here.cost, frontier.unit)
    return f"Along the frontier, from {at} of {name}, {', and '.join(told)}." if told else ""


def _slope(frontier: Frontier, cheap: FrontierPoint, dear: FrontierPoint, size: float) -> str:
    loss = (cheap.loss - dear.loss) / (dear.cost - cheap.cost) * size
    return f"{plain(loss)} {frontier.loss_unit}"
