"""A search's result and its frontier, as what the page says."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import isnan, sqrt
from typing import Final

import numpy as np

from mpq._support.names import for_people
from mpq.errors import UnknownNameError
from mpq.problem.metadata import UsedBudget
from mpq.problem.problem import Problem
from mpq.problem.tolerances import is_within
from mpq.quantization.precision import Precision
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.page.facts import (
    Checked,
    DeviceFacts,
    Facts,
    LossFacts,
    NetworkFacts,
    PointFacts,
    Resource,
)
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.page.commands import call_of, command_of, why_no_command
from mpq.workflows.page.files import file_note, metadata_of, shared_file, why_no_file
from mpq.workflows.page.known import known_costs
from mpq.workflows.page.layers import Choices, layer_facts
from mpq.workflows.page.made import made_rows
from mpq.workflows.page.moves import best_moves, single_moves, why_no_moves
from mpq.workflows.page.pairs import strongest_pairs, why_no_pairs
from mpq.workflows.page.prices import budget_prices, price_of
from mpq.workflows.page.said import said
from mpq.workflows.page.trust import checks_of, order_of, size_of
from mpq.workflows.searched import Searched
from mpq.workflows.sentences import (
    answer_sentences,
    network_sentences,
    unshipped_sentences,
)

KINDS: Final = {"original": "original", "result": "answer"}
"""Networks that are no uniform precision."""


def facts_of(result: Searched, frontier: Frontier) -> Facts:
    """All that the page says.

    Args:
        result: As it is saved.
        frontier: The one that is drawn, of the same layers.
    """
    made = result.made
    accounts = Accounts.of(result, frontier.resource)
    moves = single_moves(accounts, result.columns)
    weightless = frozenset(layer.name for layer in result.layers if not layer.has_weights)
    choices = Choices(accounts, weightless)
    points = tuple(_points(result, frontier, accounts, choices))
    networks = tuple(networks_of(result, frontier.others))
    checks = checks_of(result, frontier)
    resources = tuple(_resources(result, accounts))
    measured = result.comparisons[0].measured if result.comparisons else None
    volume = frontier.hypervolume
    return Facts(
        title=f"Mixed precision for {len(accounts.names)} layers",
        run_id=result.run_id,
        sentences=tuple(said(result, networks)),
        loss_unit=result.problem.loss.unit,
        solver_loss=LossFacts(result.loss_name, result.loss_unit, result.solution.loss),
        metric="" if measured is None else measured.metric.name,
        metric_unit="" if measured is None else measured.metric.unit,
        score=result.assignment.metadata.score or "",
        higher_score_is_better=result.provenance.higher_score_is_better,
        budgets=tuple(
            UsedBudget(b.resource, b.unit, b.limit, b.used(result.columns))
            for b in result.problem.budgets
        ),
        resources=resources,
        networks=networks,
        axis=frontier.resource,
        points=points,
        points_name=frontier.loss_title,
        points_unit=frontier.loss_unit,
        # Of two points it is 0 whatever they are.
        hypervolume=None if isnan(volume) or len(frontier.points) < 3 else volume,
        frontier_notes=tuple(filter(None, (frontier.warning,))),
        precisions=tuple(map(str, result.problem.loss.precisions)),
        layers=tuple(layer_facts(result, accounts, choices)),
        moves=best_moves(accounts, moves, frontier.resource),
        price=price_of(frontier),
        budget_prices=tuple(budget_prices(accounts, result.columns, moves)),
        why_no_pairs=why_no_pairs(result.problem),
        why_no_moves=why_no_moves(accounts, frontier.resource),
        checks=checks,
        order=order_of(checks),
        trust=(*answer_sentences(result), *_of_checks(result, checks)),
        cost_notes=tuple(known_costs(result, resources)),
        warnings=(*unshipped_sentences(result), *network_sentences(result)),
        device=_device(result),
        made=tuple((name, for_people(told)) for name, told in made_rows(result)),
        phases=made.phases,
        command=shlex.join(made.again),
        call="" if made.command or result.provenance.asked is None else call_of(result),
        assignment=shared_file(result, choices.precisions),
    )


def _of_checks(result: Searched, checks: tuple[Checked, ...]) -> Iterator[str]:
    if result.spot_check is not None and (held := result.spot_check.tolerance):
        yield held
    # Numbers in different units are no ratio.
    unit = result.comparisons[0].measured.metric.unit if result.comparisons else ""
    if result.problem.loss.unit == unit and (told := size_of(checks)):
        yield told


def _resources(result: Searched, accounts: Accounts) -> Iterator[Resource]:
    columns = result.columns
    widths = {table.name: table for table in result.half_widths}
    for name, unit in accounts.units.items():
        width = None
        if name in widths:
            cells = widths[name].values[np.arange(len(columns)), columns]
            # Independent errors add up in squares; nan is an interval that is not known.
            width = sqrt(float(np.nansum(cells**2)))
        yield Resource(name, unit, name in accounts.shown, width)


def networks_of(result: Searched, others: Sequence[FrontierPoint]) -> Iterator[NetworkFacts]:
    """What was measured: the original, the answer, uniform precisions.

    Args:
        result: That has them.
        others: The same but for the original, as points with their precisions.
    """
    columns = {table.column: table.name for table in result.tables}
    limited = {f"{b.resource}_{b.unit}": b.resource for b in result.problem.budgets}
    names = {**limited, **columns}
    points = {point.label: point.precisions for point in others}
    for row in result.comparisons:
        costs = {names.get(x, x): None if isnan(cost) else cost for x, cost in row.costs.items()}
        label = "answer" if row.label == "result" else row.label
        kind = KINDS.get(row.label, "uniform")
        known = points.get(row.label)
        within, keeps = _is_within(result.problem, costs, known), _keeps(result.problem, known)
        yield NetworkFacts(label, kind, row.predicted_loss, row.measured, costs, within, keeps)


def _keeps(problem: Problem, precisions: Mapping[str, Precision] | None) -> bool:
    """Whether layers may take these: not where a rule is broken, such as ``--fix``."""
    if precisions is None:
        return True
    with suppress(UnknownNameError):
        return problem.is_allowed(problem.columns_of(precisions))
    return False


def _is_within(
    problem: Problem,
    costs: Mapping[str, float | None],
    precisions: Mapping[str, Precision] | None,
) -> bool | None:
    """Whether a network meets every budget: by its precisions, or by what it costs."""
    if precisions is not None:
        with suppress(UnknownNameError):
            columns = problem.columns_of(precisions)
            return all(budget.is_met(columns) for budget in problem.budgets)
    if any(budget.resource not in costs for budget in problem.budgets):
        return None
    found = [(costs[budget.resource], budget.limit) for budget in problem.budgets]
    return all(cost is not None and is_within(cost, limit) for cost, limit in found)


def _points(
    result: Searched,
    frontier: Frontier,
    accounts: Accounts,
    choices: Choices,
) -> Iterator[PointFacts]:
    number = 0
    for point in frontier.all_points():
        try:
            columns = result.problem.columns_of(point.precisions)
        except UnknownNameError:
            # A uniform precision that is no candidate has no row in any table.
            continue
        is_frontier = point.label.startswith("frontier")
        number += is_frontier
        kind = "frontier" if is_frontier else KINDS.get(point.label, "uniform")
        is_answer = kind == "answer"
        yield PointFacts(
            label=point.label.replace("frontier", f"frontier point {number}", 1)
            if is_frontier
            else _label(point),
            kind=kind,
            loss=point.loss,
            costs=accounts.costs(columns),
            choices=choices.of(point.precisions, columns),
            measured=point.measured,
            status="" if point.status is None else point.status.in_short,
            is_within=point.meets_others,
            pairs=strongest_pairs(result.problem, columns),
            command=command_of(result, point, frontier),
            why_no_command=why_no_command(result, point, frontier),
            metadata=metadata_of(result, point),
            why_no_file=_why_no_answer(result)
            if is_answer
            else why_no_file(result, point.precisions),
            keeps_rules=result.problem.is_allowed(columns),
            file_note="" if is_answer else file_note(result),
        )


def _why_no_answer(result: Searched) -> str:
    """Why the page cannot give the answer's own file; empty: it can."""
    if result.problem.parts is None:
        return ""
    return "bits differ inside layers, and the folder of this result has it"


def _label(point: FrontierPoint) -> str:
    return "answer" if point.label == "result" else f"uniform {point.label}"


def _device(result: Searched) -> DeviceFacts | None:
    device = result.provenance.device
    if device is None:
        return None
    names = " and ".join(name.replace("_", " ") for name in device.resources)
    verb = "are" if len(device.resources) > 1 else "is"
    priced = f"{names[:1].upper()}{names[1:]} {verb} {device.basis}" if names else ""
    numbers = tuple((name, x.value, x.source) for name, x in device.numbers.items())
    return DeviceFacts(device.name, device.title, priced, device.notes, numbers)
