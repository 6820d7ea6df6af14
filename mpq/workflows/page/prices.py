"""What a little more of the frontier's resource would buy, and what a little less would cost."""

from collections.abc import Iterator, Sequence
from math import isnan
from typing import Final

from mpq._support.arrays import Columns
from mpq._support.names import shortened, visible
from mpq.report.amount import amount
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.page.layers import Move
from mpq.report.page.numbers import plain, share
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.page.moves import buying

_STEPS: Final = {
    "bytes": (1024.0, "KiB"),
    "seconds": (1e-3, "ms"),
    "joules": (1e-3, "mJ"),
    "bits": (1.0, "bit"),
    "bitops": (1e6, "million bit operations"),
}
"""What "one more" is, where one of the unit itself is too little or too much."""


def budget_prices(accounts: Accounts, columns: Columns, moves: Sequence[Move]) -> Iterator[str]:
    """How far each budget is used, the most used first, and what more of it buys at best.

    Args:
        accounts: Of the answer's problem.
        columns: ``[L]`` the answer.
        moves: Of its single layers.
    """
    unit = accounts.problem.loss.unit
    budgets = [x for x in accounts.problem.budgets if x.limit > 0 and x.resource in accounts.shown]
    for budget in sorted(budgets, key=lambda x: -x.used(columns) / x.limit) if moves else ():
        at, name = accounts.shown.index(budget.resource), budget.resource.replace("_", " ")
        size, word = _STEPS.get(budget.unit, (1.0, budget.unit))
        said = "no single layer loses less for more of it"
        for best in buying(moves, at)[:1]:
            layer = shortened(visible(best.layer))
            saved = plain(-best.loss / best.costs[at] * size)
            # By one layer alone: several that move together may save more.
            said = (
                f"one {word} more saves {saved} {unit} in the single layer that makes most of it, "
                f"{layer} at {best.after}"
            )
        used = share(budget.used(columns), budget.limit)
        yield f"{name[:1].upper()}{name[1:]}, {used} used: {said}."


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
