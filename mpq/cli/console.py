"""Numbers for a terminal."""

from collections.abc import Callable, Iterator
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpq._support.names import LONGEST, for_people, shortened, visible
from mpq._support.streams import answer_stream
from mpq.report.amount import amount
from mpq.report.reasons import with_reasons

if TYPE_CHECKING:
    import pandas as pd

    from mpq.hardware_profiles import NetworkProfile
    from mpq.report.estimators import EstimatorComparison
    from mpq.report.frontier import Frontier
    from mpq.report.recipes import RecipeComparison
    from mpq.workflows.result import SearchResult

_LONGEST_CELL = 1000
"""Characters of a sentence in a table; names are cut before."""


def print_result(result: "SearchResult", console: Console) -> None:
    """What is not quantized, layers, comparison, how it ended, and what was found on the way."""
    from mpq.workflows.sentences import (
        answer_sentences,
        cost_sentences,
        network_sentences,
        operand_sentences,
        unshipped_sentences,
    )

    if result.provenance.streamed:
        console.print(for_people(result.provenance.streamed), markup=False, emoji=False)
    for line in (*unshipped_sentences(result), *operand_sentences(result)):
        console.print(for_people(line), markup=False, emoji=False)
    console.print(_table(result.layer_table(), "Layers", _layer_columns))
    console.print(_table(result.comparison_table(), "Measured on held-out examples", _all_columns))
    for line in (*answer_sentences(result), *cost_sentences(result), *network_sentences(result)):
        console.print(for_people(line), markup=False, emoji=False)


def print_profile(profile: "NetworkProfile", console: Console) -> None:
    """Uniform networks, and how well sums of layers predict whole ones."""
    table = new_table()
    for heading in ("precision", "layers alone", "layers that run at it"):
        table.add_column(heading, justify="right")
    values = profile.latency.values
    for precision, column in zip(profile.latency.precisions, values.T, strict=True):
        runs = int(np.isfinite(column).sum())
        table.add_row(
            str(precision), f"{np.nansum(column) * 1e3:.4g} ms", f"{runs} of {len(column)}"
        )
    besides = f"besides layers {profile.latency.constant * 1e3:.4g} ms"
    console.print(for_people(f"{profile.title}; {besides}"), markup=False, emoji=False)
    console.print(table)
    for wrong in profile.record["computed_wrongly"]:
        line = (
            f"{wrong['layer']} at {wrong['precision']}: left out, computed wrongly (off by "
            f"{wrong['error_in_standard_deviations']:.2g} standard deviations of its output)"
        )
        console.print(for_people(line), markup=False, emoji=False)
    for label, found in profile.record.get("agreement", {}).items():
        # Of fewer networks a rank correlation is next to chance.
        ranks = f"Spearman {found['spearman']:.3f}, " if found["num_networks"] >= 5 else ""
        console.print(
            f"{label} against {found['num_networks']} other networks: {ranks}median error "
            f"{found['median_absolute_error']:.1%}"
        )


def print_comparison(comparison: "EstimatorComparison", console: Console) -> None:
    """What every estimator is worth."""
    title = (
        f"{len(comparison.trials)} random assignments, measured on {comparison.num_held_out} "
        f"held-out examples; estimates from {comparison.num_calibration}"
    )
    # Seconds are told by forward passes already, errors below the table: it is wide enough.
    table = comparison.table().drop(columns=["estimate_seconds", "error"])
    console.print(_table(table, title, lambda name: "accuracy" not in name))
    for score in comparison.scores:
        if score.error:
            line = f"{score.estimator}: {score.error}"
            console.print(for_people(line), markup=False, emoji=False)


def print_recipes(comparison: "RecipeComparison", console: Console) -> None:
    """What every recipe loses and takes, beside the default."""
    title = (
        f"Whole searches, measured on {comparison.num_held_out} held-out examples; "
        f"{comparison.num_calibration} to calibrate"
    )
    table = comparison.table().drop(columns=["overrides", "error"])
    console.print(_table(table, title, _all_columns))
    for row in comparison.rows:
        told = row.error or (f"but for {'; '.join(row.overrides)}" if row.overrides else "")
        if told:
            line = for_people(f"{row.recipe}, {row.limit}: {told}")
            console.print(line, markup=False, emoji=False)


def print_frontier(frontier: "Frontier", console: Console, what: str = "Frontier") -> None:
    """The points of a frontier, or alternatives, over its resource."""
    from mpq.report.tables import frontier_table

    # A precision for every layer in one cell would fill the screen; frontier.csv has them.
    table = frontier_table(frontier).drop(columns="precisions")
    # For people as the page and the sentence about an answer have it.
    table["status"] = [p.status.in_short if p.status else "" for p in frontier.all_points()]
    console.print(_table(table, f"{what} over {frontier.resource}", _all_columns))
    if what == "Frontier":
        if not isnan(frontier.hypervolume):  # of a single point there is no rectangle
            share = f"{frontier.hypervolume:.4f} of the rectangle between the ends"
            console.print(f"hypervolume: {share}")
        for line in frontier.spot_check:
            console.print(for_people(line), markup=False, emoji=False)
        for line in _frontier_transforms(frontier):
            console.print(for_people(line), markup=False, emoji=False)
        print_warning(frontier, console)


def _frontier_transforms(frontier: "Frontier") -> Iterator[str]:
    """What was done to the parameters of the network that all points are of."""
    if frontier.transforms:
        yield f"all points are of the network with --transform {','.join(frontier.transforms)}"
    if frontier.transforms_unhelped:
        yield f"transformations not used: {with_reasons(frontier.transforms_unhelped)}"


def print_warning(frontier: "Frontier", console: Console) -> None:
    """Why a frontier is not to be believed, where that is known."""
    if frontier.warning:
        console.print(for_people(f"warning: {frontier.warning}"), markup=False, emoji=False)


def _all_columns(_: str) -> bool:
    return True


def _layer_columns(name: str) -> bool:
    """Names, sizes and shares; the amounts are in table.csv."""
    plain = ("layer", "kind", "weights", "macs", "precision")
    return name in plain or name.endswith("_share")


class _AnswerConsole(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the process itself, as if there were an error.
        raise BrokenPipeError


def new_console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    # Not sys.stdout, which leads to standard error while a command runs. Where it cannot ask, rich
    # takes 80 columns and folds every heading.
    console = _AnswerConsole(file=answer_stream())
    return console if console.is_terminal else _AnswerConsole(file=answer_stream(), width=140)


def literal(cell: str, longest: int = _LONGEST_CELL) -> Text:
    """A cell as it is: no markup, no emoji, no escape sequence; its middle left out if long."""
    return Text(shortened(visible(cell), longest))


def new_table(title: str | None = None) -> Table:
    """An empty table in the one style."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _table(frame: "pd.DataFrame", title: str, shows: Callable[[str], bool]) -> Table:
    table = new_table(title)
    columns = [str(name) for name in frame.columns if shows(str(name))]
    # Without targets there is no accuracy, for instance: empty columns take the room of others.
    columns = [name for name in columns if not frame[name].isna().all()]
    for name in columns:
        # Kind b, of booleans, is not among them: they are shown as words.
        is_text = frame[name].dtype.kind not in "if"
        table.add_column(
            literal(_heading(name), LONGEST),
            justify="left" if is_text else "right",
            overflow="fold",
        )
    for _, row in frame.iterrows():
        table.add_row(*(literal(_cell(name, row[name]), LONGEST) for name in columns))
    return table


def _heading(column: str) -> str:
    for unit in ("_seconds", "_joules"):
        # Cells say their unit, scaled. Bytes stay, as in weight_bytes they are a part of the name.
        column = column.removesuffix(unit)
    return column.replace("_share", " %").replace("_", " ")


def _cell(column: str, value: object) -> str:
    if value is None:
        return ""
    # Before the numbers, since True is an int.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if column.endswith(("_share", "accuracy")):
        return (
            f"{100 * value:.1f}" + ("" if column.endswith("_share") else " %")
            if value == value
            else ""
        )
    # Here nan is what is not known; ``amount`` would say that it cannot run.
    if column == "peak_memory_bytes" and value != value:
        return ""
    for unit in ("seconds", "bytes", "joules"):
        if column.endswith(unit):
            return amount(float(value), unit)
    if value != value:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
