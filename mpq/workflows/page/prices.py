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


def price_of(frontier: Frontier) -> str:
    """The slopes from the answer to the frontier on both sides of it; empty where there is none.

    Args:
        frontier: With the answer among its others.
    """
    here = next((p for p in frontier.others if p.label == "result" and not isnan(p.cost)), None)
    if here is None:
        return ""
    known = sorted((p for p in frontier.points if not isnan(p.cost)), key=lambda p: p.cost)
    # What is written in a file differs in its last digit. An answer by other prices may lose less
    # than a point that costs more.
    below = [p for p in known if p.cost < here.cost * (1 - 1e-9) and p.loss > here.loss]
    above = [p for p in known if p.cost > here.cost * (1 + 1e-9) and p.loss < here.loss]
    size, word = _STEPS.get(frontier.unit, (1.0, frontier.unit))
    told = []
    if above:
        told.append(f"one {word} more saves {_slope(frontier, here, above[0], size)}")
    if below:
        told.append(f"one {word} less costs {_slope(frontier, below[-1], here, size)}")
    name = frontier.resource.replace("_", " ")
    at = amount(here.cost, frontier.unit)
    return (
        f"From the answer, {at} of {name}, to the frontier: {', and '.join(told)}." if told else ""
    )


def _slope(frontier: Frontier, cheap: FrontierPoint, dear: FrontierPoint, size: float) -> str:
    loss = (cheap.loss - dear.loss) / (dear.cost - cheap.cost) * size
    return f"{plain(loss)} {frontier.loss_unit}"
