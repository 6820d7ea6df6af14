"""How well what a result costs is known, and what lies besides its layers; in sentences."""

from collections.abc import Iterator, Sequence

from mpq.report.amount import amount
from mpq.report.page.facts import Resource
from mpq.workflows.searched import Searched


def known_costs(result: Searched, resources: Sequence[Resource]) -> Iterator[str]:
    """Of every resource that is limited, or shown by layer."""
    limited = {budget.resource for budget in result.problem.budgets}
    for resource in resources:
        if resource.is_shown or resource.name in limited:
            yield f"{_words(resource.name)}: {_how(result, resource)}"
    for table in result.shown_tables:
        between = table.total_between(result.columns) if table.pairs else 0.0
        for where, cost in (("besides its layers", table.constant), ("between layers", between)):
            if cost:
                yield f"{_words(table.name)} {where}: {amount(cost, table.unit)}"
    yield from _named_parts(result)


def _named_parts(result: Searched) -> Iterator[str]:
    """Why a budget counts more than the answer takes: a sum over parts cannot see them agree."""
    rows = [row for row in result.comparisons if row.label == "result"]
    if result.problem.parts is None or not rows:
        return
    columns = {table.name: table.column for table in result.tables}
    for budget in result.problem.budgets:
        taken = rows[0].costs.get(columns.get(budget.resource, ""))
        more = 0.0 if taken is None else budget.used(result.columns) - taken
        if more > 0:
            yield (
                f"{_words(budget.resource)}: budgets and points count {amount(more, budget.unit)} "
                "more than the answer takes: room for what names the parts, and for the last byte, "
                "of every divided layer"
            )


def _how(result: Searched, resource: Resource) -> str:
    device = result.provenance.device
    is_priced = device is not None and resource.name in device.resources
    # Nobody counts time or energy; results of mpq 0.1 do not say what their device priced.
    if not is_priced and resource.unit not in ("seconds", "joules"):
        return "counted"
    told = "by formula" if device is None else f"{device.basis or 'by formula'} ({device.name})"
    if resource.half_width is None:
        return f"{told}; how far off it is was not measured"
    width = amount(resource.half_width, resource.unit)
    return f"{told}; that of its layers is known to ± {width} (95 %, if layers err independently)"


def _words(name: str) -> str:
    return name.replace("_", " ")
