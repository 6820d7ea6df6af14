"""What every choice adds up: the loss, all budgets, and how far it is from other choices."""

from collections.abc import Sequence
from dataclasses import replace

from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.cut import Cut


def summed_rows(
    loss: CostTable, budgets: Sequence[Budget], cuts: Sequence[Cut]
) -> tuple[list[CostTable], list[float]]:
    """The loss, ``R`` tables that are sums over layers, and the ``R`` limits of these.

    Args:
        loss: ``[L, B]``.
        budgets: Of a maximum over steps every step is a sum within the limit.
        cuts: Assignments to differ from.
    """
    tables, limits = [loss], list[float]()
    for budget in budgets:
        tables += budget.tables
        limits += [budget.limit] * len(budget.tables)
    for cut in cuts:
        same, limit = cut.row(len(loss.precisions))
        # Counts layers, whatever the unit: what is lost besides single layers is not in it.
        tables.append(replace(loss, values=same, constant=0.0, pairs=()))
        limits.append(limit)
    return tables, limits
