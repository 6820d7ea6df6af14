"""Numbers for a terminal."""

from collections.abc import Callable, Collection, Iterator, Mapping
from math import isnan, sqrt
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpq._support.names import LONGEST, for_people, shortened, visible
from mpq._support.streams import answer_stream
from mpq.network.reparametrization import TRANSFORMS_FILE
from mpq.network.tuned_parameters import TUNED_FILE
from mpq.quantization.precision import spell_weight
from mpq.quantization.stored import WEIGHTS_FILE

if TYPE_CHECKING:
    import pandas as pd

    from mpq.hardware_profiles import NetworkProfile
    from mpq.problem.solution import Solution
    from mpq.quantization.steps import StepClusters
    from mpq.report.estimators import EstimatorComparison
    from mpq.report.frontier import Frontier
    from mpq.workflows.result import SearchResult

_LONGEST_CELL = 1000
"""Characters of a sentence in a table; names are cut before."""
_PREFIXES = {0: "", -1: "m", -2: "µ", -3: "n", -4: "p"}


def amount(value: float, unit: str) -> str:
    """A number with its unit, four digits, for people.

    >>> amount(0.0046, "seconds"), amount(37856, "bytes"), amount(4.5, "bits")
    ('4.600 ms', '36.97 KiB', '4.500 bits')
    """
    if value != value:
        return "cannot run"
    if unit == "bytes":
        # Powers of two, as the memories of small devices and limits in KiB are.
        power = next((p for p in (2, 1) if abs(value) >= 1024**p), 0)
        return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB')[power]}"
    if unit in ("seconds", "joules"):
        # A 0 keeps the whole unit: "0 ps" would look like a measurement.
        power = next((p for p in (0, -1, -2, -3) if abs(value) >= 1000**p), -4 if value else 0)
        return f"{value / 1000.0**power:#.4g} {_PREFIXES[power]}{'s' if unit == 'seconds' else 'J'}"
    return f"{value:.3f} {unit}" if unit == "bits" else f"{value:.4g} {unit}"


def print_result(result: "SearchResult", console: Console) -> None:
    """What is not quantized, layers, comparison, how it ended, and what was found on the way."""
    if result.provenance.streamed:
        console.print(for_people(result.provenance.streamed), markup=False, emoji=False)
    for line in _unshipped(result):
        console.print(for_people(line), markup=False, emoji=False)
    console.print(_table(result.layer_table(), "Layers", _layer_columns))
    console.print(_table(result.comparison_table(), "Measured on held-out examples", _all_columns))
    for line in (*_answer(result), *_costs(result), *_network(result)):
        console.print(for_people(line), markup=False, emoji=False)


def _answer(result: "SearchResult") -> Iterator[str]:
    """How the search ended, and whether its prediction holds."""
    solution = result.solution
    yield f"{solution.solver}: {solution.status.value}"
    if solution.why:
        yield solution.why
    yield f"{result.loss_name}: {solution.loss:.4g} {result.problem.loss.unit}{_proof(solution)}"
    if result.spot_check is not None:
        yield from result.spot_check.sentences
    if result.safeguard is not None:
        yield from result.safeguard.sentences
    for number, round_ in enumerate(result.provenance.refinements, start=1):
        yield (
            f"refinement {number}: measured loss {round_.measured_loss:.4g} on calibration "
            f"examples, {'kept' if round_.is_kept else 'not better, dropped'}"
        )


def _costs(result: "SearchResult") -> Iterator[str]:
    """What the answer uses of every budget, and what lies besides layers."""
    columns = result.columns
    for budget in result.problem.budgets:
        used, unit = budget.used(columns), budget.unit
        # Nothing is a share of 0, which a limit may be: on bytes between layers, for example.
        share = f" ({used / budget.limit:.1%})" if budget.limit else ""
        yield f"{budget.resource}: {amount(used, unit)} of {amount(budget.limit, unit)}{share}"
    for table in result.shown_tables:
        beside = {
            "besides its layers": table.constant,
            "between layers": table.total_between(columns) if table.pairs else 0.0,
        }
        parts = [f"{where}: {amount(x, table.unit)}" for where, x in beside.items() if x]
        if parts:
            yield f"{table.name} {'; '.join(parts)}"
    for table in result.half_widths:
        # Independent errors add up in squares; nan is an interval that is not known.
        widths = table.values[np.arange(len(columns)), columns]
        known = amount(sqrt(np.nansum(widths**2)), table.unit)
        yield f"{table.name} of its layers is known to {known} (95 %, if layers err independently)"
    device = result.provenance.device
    if device is not None:
        yield f"device {device.name}: {' and '.join(device.resources)} {device.basis}"


def _with_reasons(layers: Mapping[str, str]) -> str:
    """The first of some layers, each with a reason, and how many more."""
    shown = "; ".join(f"{name} ({why})" for name, why in list(layers.items())[:3])
    return shown + (f"; and {len(layers) - 3} more" if len(layers) > 3 else "")


def _unshipped(result: "SearchResult") -> Iterator[str]:
    """Layers that the target has no place for; said first, as they may be most of the network."""
    unshipped = result.provenance.unshipped
    if unshipped:
        yield (
            f"{len(unshipped)} of {len(result.assignment.layers)} layers stay as they came, as "
            f"{result.provenance.target} holds none of their candidates: {_with_reasons(unshipped)}"
        )


def _rounding(result: "SearchResult") -> Iterator[str]:
    """How weights became codes and ranges were chosen, where that looked at the loss."""
    made, weights = result.provenance, result.assignment.weights
    num_weights = sum(not layer.is_cache for layer in result.layers)
    if weights is not None and made.tuning is not None and made.tuning.is_kept:
        yield (
            f"{len(weights.by_layer)} of {num_weights} weights have codes and "
            f"scales of their own (--rounding {made.rounding}, and tuned); they are in "
            f"{WEIGHTS_FILE}"
        )
    elif weights is not None and (count := _num_by_data(result, weights.by_layer)):
        yield (
            f"{count} of {num_weights} weights rounded with "
            f"regard to the calibration examples (--rounding {made.rounding}); their codes are "
            f"in {WEIGHTS_FILE}"
        )
    branched = sum(layer.precision.weight.branch is not None for layer in result.assignment.layers)
    if branched:
        yield f"{branched} weights have branches beside their codes; both are in {WEIGHTS_FILE}"
    if made.rounding_unguided:
        yield f"rounded without regard to the loss: {_with_reasons(made.rounding_unguided)}"
    if made.rounded_to_nearest:
        yield f"weights rounded to nearest: {_with_reasons(made.rounded_to_nearest)}"
    if made.rounding_unhelped:
        yield (
            f"weights at {', '.join(made.rounding_unhelped)} rounded to nearest: on calibration "
            f"examples that {made.rounding} had not seen, its codes lost more, or less by chance"
        )
    if made.ranges_unhelped:
        yield f"ranges by mse instead of loss: {_with_reasons(made.ranges_unhelped)}"
    if made.steps is not None:
        yield from made.steps.sentences
        yield from _steps(result, made.steps.clusters)
    if made.sequential_rounding is not None:
        yield from made.sequential_rounding.sentences(result.measured.metric.unit)
    if made.recalibration is not None:
        yield made.recalibration.sentence(result.measured.metric.unit)
    if made.bias_correction is not None:
        yield from made.bias_correction.sentences(result.measured.metric.unit)
    if result.assignment.tuned is not None:
        count = len(result.assignment.tuned.by_name)
        yield f"{count} biases and norms tuned or corrected; see {TUNED_FILE}"
    if made.tuning is not None:
        yield from made.tuning.sentences(result.measured.metric.unit)


def _steps(result: "SearchResult", clusters: "StepClusters") -> Iterator[str]:
    """Which layers lose at which steps."""
    from mpq.report.step_lines import step_lines

    losses = result.step_losses
    if losses is not None and result.steps is not None:
        names = result.problem.loss.layers
        yield from step_lines(clusters, names, losses, result.steps.examples, result.columns)


def _num_by_data(result: "SearchResult", kept: Collection[str]) -> int:
    """Of the weights that are kept, those that are not kept for their branches alone."""
    made, formats = result.provenance, result.assignment.precisions

    def is_to_nearest(name: str) -> bool:
        is_unhelped = spell_weight(formats[name].weight) in made.rounding_unhelped
        return made.rounding == "nearest" or name in made.rounded_to_nearest or is_unhelped

    return sum(formats[name].weight.branch is None or not is_to_nearest(name) for name in kept)


def _transforms(result: "SearchResult") -> Iterator[str]:
    """What was done to the parameters, where it was asked for."""
    made, done = result.provenance, result.assignment.reparametrization
    if done is not None:
        yield (
            f"network transformed before rounding ({', '.join(done.transforms)}); what was done is "
            f"in {TRANSFORMS_FILE}"
        )
    if made.transforms_unhelped:
        yield f"transformations not used: {_with_reasons(made.transforms_unhelped)}"
    if made.untransformed:
        yield f"weights that no transformation fits: {_with_reasons(made.untransformed)}"


def _network(result: "SearchResult") -> Iterator[str]:
    """What of the network was not compared, not covered, not reached."""
    yield from _transforms(result)
    yield from _rounding(result)
    unscored = result.provenance.unscored
    if unscored:
        yield (
            "outputs that nobody looked at, so that layers behind them alone lose nothing: "
            f"{', '.join(unscored)}; --outputs compares them too"
        )
    if result.provenance.is_mixing:
        yield (
            "rows of a batch change each other's outputs (or are not as many), so that a whole "
            "batch is one example: macs, activations, latency and energy are those of a batch"
        )
    if result.provenance.unchecked_rows:
        yield (
            "not checked: whether rows of a batch change each other's outputs "
            f"({result.provenance.unchecked_rows}); each row is taken for an example"
        )
    if result.coverage is not None:
        yield from result.coverage.sentences
    yield from result.provenance.reach.sentences()


def _proof(solution: "Solution") -> str:
    if solution.bound is None or solution.gap is None:
        return ", no bound proved"
    return f", proved bound {solution.bound:.4g} (gap {solution.gap:.1e})"


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


def print_frontier(frontier: "Frontier", console: Console, what: str = "Frontier") -> None:
    """The points of a frontier, or alternatives, over its resource."""
    from mpq.report.tables import frontier_table

    # A precision for every layer in one cell would fill the screen; frontier.csv has them.
    table = frontier_table(frontier).drop(columns="precisions")
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
        yield f"transformations not used: {_with_reasons(frontier.transforms_unhelped)}"


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
