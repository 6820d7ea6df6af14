"""A search's result, as what a notebook shows of it."""

from mpq.report.page.facts import Resource
from mpq.report.page.summary import Summary
from mpq.workflows.page.facts import networks_of
from mpq.workflows.page.said import said
from mpq.workflows.searched import Searched


def summary_facts(result: Searched) -> Summary:
    """Of what was measured; costs are those that the comparison has."""
    others = result.beside("weight_bytes") if result.comparisons else ()
    networks = tuple(networks_of(result, others))
    units = {x.name: x.unit for x in result.tables}
    units |= {budget.resource: budget.unit for budget in result.problem.budgets}
    shown = networks[0].costs if networks else {}
    measured = result.comparisons[0].measured if result.comparisons else None
    return Summary(
        f"Mixed precision for {len(result.assignment.layers)} layers",
        tuple(said(result, networks)),
        result.problem.loss.unit,
        "" if measured is None else measured.metric.unit,
        networks,
        tuple(Resource(name, units[name]) for name in shown if name in units),
    )
