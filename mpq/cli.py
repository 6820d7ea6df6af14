"""The command line: ``mpq --help``. Imports torch only where a command needs it."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from mpq.cli_options import (
    DEMO,
    DEMO_HELD_OUT,
    Alternatives,
    AssignmentFile,
    CompareOptions,
    Debug,
    Differing,
    Limits,
    MaxPredicted,
    Metric,
    Minimize,
    Model,
    SearchOptions,
    Seed,
    SolverName,
    TableFile,
    Weights,
    taking,
)

app = typer.Typer(
    name="mpq",
    help="Mixed-precision quantization search: a bit width per layer for a budget on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
)

Command = TypeVar("Command", bound=Callable[..., None])


def reporting_errors(command: Command) -> Command:
    """Turns errors into one line on standard error and an exit code; ``--debug`` shows all."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        from mpq.errors import MpqError

        try:
            command(*args, debug=debug, **kwargs)
        except KeyboardInterrupt:
            if debug:
                raise
            _fail("interrupted; no half-written file is left", code=130)
        except MpqError as error:
            if debug:
                raise
            _fail(str(error), code=2)
        except typer.Exit:
            raise
        except Exception as error:  # the user's own model or data code, or a bug of ours
            if debug:
                raise
            _fail(f"{type(error).__name__}: {error} (--debug shows where)", code=1)

    return run  # type: ignore[return-value]


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


@app.command()
@reporting_errors
@taking(SearchOptions)
def search(options: SearchOptions, debug: Debug = False) -> None:
    """Find the best bit width for every layer within limits, on the built-in demo or your model."""
    from mpq.output import prepare_folder, write_files
    from mpq.progress import showing_progress
    from mpq.report import frontier_table
    from mpq.report.console import new_console, print_frontier, print_result

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        result = options.run()
        frontier = options.frontier(result)
        files = result.save(options.output, frontier)
        if options.alternatives:
            found = result.alternatives(options.alternatives, options.differing)
            table = frontier_table(found).to_csv(index=False)
            files += write_files(options.output, {"alternatives.csv": table.encode()})
    print_result(result, console)
    if options.alternatives:
        print_frontier(found, console, "Alternatives")
    _print_files(files)


@app.command()
@reporting_errors
@taking(SearchOptions)
def frontier(options: SearchOptions, debug: Debug = False) -> None:
    """Least loss for every amount of one resource: frontier.csv, .json and .png only."""
    from mpq.output import prepare_folder, write_files
    from mpq.progress import showing_progress
    from mpq.report import frontier_table, png
    from mpq.report.console import new_console, print_frontier

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        result = options.run()
        found = options.frontier(result)
        table = frontier_table(found).to_csv(index=False)
        contents = {
            "frontier.csv": table.encode(),
            "frontier.json": found.to_json().encode(),
            "frontier.png": png(result.plot("frontier", found)),
        }
        files = write_files(options.output, contents)
    print_frontier(found, console)
    _print_files(files)


@app.command()
@reporting_errors
def solve(
    table: TableFile,
    limit: Limits = None,
    solver: SolverName = "auto",
    minimize: Minimize = None,
    max_loss: MaxPredicted = None,
    alternatives: Alternatives = 1,
    differing: Differing = 1,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Solve a table that somebody else made, or a search's problem.json again; JSON. No torch."""
    import json

    from mpq.solvers import SOLVERS
    from mpq.solving import answers, load_problem, record

    problem, resources = load_problem(table, limit or ())
    built = SOLVERS.build(solver, seed)
    found = answers(problem, resources, built, minimize, max_loss, alternatives, differing)
    typer.echo(json.dumps([record(asked, solution) for asked, solution in found], indent=1))


@app.command()
@reporting_errors
@taking(CompareOptions)
def compare(options: CompareOptions, debug: Debug = False) -> None:
    """Measure which sensitivity estimator predicts your network: random assignments, held out."""
    from mpq.output import prepare_folder
    from mpq.progress import showing_progress
    from mpq.report.console import new_console, print_comparison

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        found = options.run()
        files = found.save(options.output)
    print_comparison(found, console)
    _print_files(files)


def _print_files(files: list[Path]) -> None:
    from mpq.report.console import new_console

    console = new_console()
    for file in files:
        console.print(f"wrote {file}", highlight=False)


@app.command()
@reporting_errors
def evaluate(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option(help="Function that yields held-out batches; named as --model.")
    ] = None,
    metric: Metric = "kl",
    debug: Debug = False,
) -> None:
    """Measure an assignment on held-out examples: KL divergence, accuracy, cross entropy; JSON."""
    import json

    from mpq.assignment import Assignment
    from mpq.errors import InputError
    from mpq.evaluation import evaluate as run
    from mpq.loading import load_callable, load_model
    from mpq.metric import METRICS

    found = Assignment.load(assignment)
    if data is None and model != DEMO:
        raise InputError("--model needs --data: a function that yields held-out batches")
    examples = load_callable(data or DEMO_HELD_OUT)
    measured = run(load_model(model, weights), found, examples, METRICS.build(metric))
    typer.echo(json.dumps({name: m.to_dict() for name, m in measured.items()}, indent=1))


@app.command()
@reporting_errors
def apply(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    output: Annotated[Path, typer.Option(help="Where the rounded weights go.")] = Path(
        "quantized.safetensors"
    ),
    debug: Debug = False,
) -> None:
    """Write the network's weights as they are in the assigned formats (BatchNorm folded)."""
    from safetensors.torch import save

    from mpq.assignment import Assignment
    from mpq.backends import apply as run
    from mpq.loading import load_model
    from mpq.output import write_files

    found = Assignment.load(assignment)
    quantized = run(load_model(model, weights), found)
    tensors = {name: t.detach().clone().contiguous() for name, t in quantized.state_dict().items()}
    content = save(tensors, {"mpq_fingerprint": found.fingerprint})
    (file,) = write_files(output.parent, {output.name: content})
    typer.echo(f"wrote {file}")


@app.command()
@reporting_errors
def export(
    assignment: AssignmentFile,
    style: Annotated[
        str, typer.Option("--format", help="bits (flat JSON), json (everything), csv, markdown.")
    ] = "bits",
    output: Annotated[Path | None, typer.Option(help="File. Default: standard output.")] = None,
    debug: Debug = False,
) -> None:
    """Write an assignment for another tool: a bit width per layer."""
    from mpq.assignment import Assignment
    from mpq.output import write_files
    from mpq.report.exports import export as render

    text = render(Assignment.load(assignment), style)
    if output is None:
        typer.echo(text, nl=False)
        return
    (file,) = write_files(output.parent, {output.name: text.encode()})
    typer.echo(f"wrote {file}")


@app.command()
@reporting_errors
def devices(
    show: Annotated[
        str | None,
        typer.Option(help="A device, or path/to/profile.json: every number and its source."),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the devices that ship with mpq, or show one of them, or your own profile."""
    from mpq.hardware_profiles import device_names, load_device
    from mpq.report.console import new_console
    from mpq.report.devices import devices_table, formats_table, numbers_table

    console = new_console()
    if show is None:
        console.print(devices_table(map(load_device, device_names())))
        return
    profile = load_device(show)
    console.print(
        f"{profile.name}: {profile.title}\n\nCosts are {profile.basis}. {profile.notes}\n",
        markup=False,
        highlight=False,
    )
    console.print(numbers_table(profile))
    console.print(formats_table(profile))


@app.command()
@reporting_errors
def import_table(
    converter: Annotated[
        str, typer.Argument(help="Layout: csv, hawqv3-t4, apq-bitfusion or haq-cycles.")
    ],
    file: Annotated[Path, typer.Argument(help="Measurements that somebody made.")],
    output: Annotated[
        Path, typer.Option(help="Profile, for --device; the device is called as this file.")
    ] = Path("table.json"),
    clock_hz: Annotated[
        float | None, typer.Option(help="Of the device, where the file counts cycles.")
    ] = None,
    head_tail: Annotated[
        Path | None, typer.Option(help="APQ's JSON of what runs before and after the layers.")
    ] = None,
    allow_extrapolation: Annotated[
        bool, typer.Option("--allow-extrapolation", help="Price shapes outside the range too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a profile of measurements, such as published ones."""
    from mpq.hardware_profiles.catalogue import device_name
    from mpq.hardware_profiles.published import import_table as run
    from mpq.output import write_files

    name = device_name(output)
    table = run(converter, file, name, clock_hz, head_tail, allow_extrapolation)
    _print_files(write_files(output.parent, {output.name: table.to_json().encode()}))


@app.command()
@reporting_errors
def estimators(debug: Debug = False) -> None:
    """List the sensitivity estimators and their options."""
    from mpq.sensitivity import ESTIMATORS

    _print_parts(ESTIMATORS)


@app.command()
@reporting_errors
def solvers(debug: Debug = False) -> None:
    """List the solvers and their options."""
    from mpq.solvers import SOLVERS

    _print_parts(SOLVERS)


@app.command()
@reporting_errors
def sources(debug: Debug = False) -> None:
    """List the sources of calibration examples that need no data, and their options."""
    from mpq.data_free import DATA_SOURCES

    _print_parts(DATA_SOURCES)


def _print_parts(registry: Any) -> None:
    from mpq.report.console import new_console, new_table

    table = new_table()
    for heading in (registry.kind, "what it does", "options"):
        table.add_column(heading, overflow="fold")
    for part in registry:
        options = (f"{name}={value}" for name, value in registry.options(part).items())
        table.add_row(part.name, part.summary, ",".join(options))
    new_console().print(table)


def main() -> None:
    """Entry point of the ``mpq`` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
