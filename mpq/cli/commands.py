"""Commands that work on a network, a table or an assignment."""

from pathlib import Path
from typing import Annotated

import typer

from mpq.cli.app import app, print_files, reporting_errors
from mpq.cli.options import (
    DEMO,
    DEMO_DATA,
    DEMO_HELD_OUT,
    Alternatives,
    AssignmentFile,
    BatchSize,
    CompareOptions,
    Data,
    Debug,
    Differing,
    Limits,
    MaxPredicted,
    Metric,
    Minimize,
    Model,
    ProfileOptions,
    SearchOptions,
    Seed,
    SolverName,
    TableFile,
    Weights,
    taking,
)


@app.command()
@reporting_errors
@taking(SearchOptions)
def search(options: SearchOptions, debug: Debug = False) -> None:
    """Find the best bit width for every layer within limits, on the built-in demo or your model."""
    from mpq._support.files import prepare_folder
    from mpq._support.progress import showing_progress
    from mpq.cli.console import new_console, print_frontier, print_result
    from mpq.report.save import save_alternatives

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        result = options.run()
        frontier = options.frontier(result)
        files = result.save(options.output, frontier)
        if options.alternatives:
            found = options.session().measured(
                result.alternatives(options.alternatives, options.differing)
            )
            files += save_alternatives(found, options.output, result.run_id)
    print_result(result, console)
    if options.alternatives:
        print_frontier(found, console, "Alternatives")
    print_files(files)


@app.command()
@reporting_errors
@taking(SearchOptions)
def frontier(options: SearchOptions, debug: Debug = False) -> None:
    """Least loss for every amount of one resource: frontier.csv, .json and .png only."""
    from mpq._support.files import prepare_folder
    from mpq._support.progress import showing_progress
    from mpq.cli.console import new_console, print_frontier
    from mpq.report.save import save_frontier

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        result = options.run()
        found = options.frontier(result)
        files = save_frontier(found, options.output)
    print_frontier(found, console)
    print_files(files)


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

    from mpq.cli.problem_file import load_problem
    from mpq.problem.solution import record
    from mpq.solvers import SOLVERS
    from mpq.solvers.queries.solve import answers

    problem, resources = load_problem(table, limit or ())
    built = SOLVERS.build(solver, seed)
    found = answers(problem, resources, built, minimize, max_loss, alternatives, differing)
    typer.echo(json.dumps([record(asked, solution) for asked, solution in found], indent=1))


@app.command()
@reporting_errors
@taking(CompareOptions)
def compare(options: CompareOptions, debug: Debug = False) -> None:
    """Measure which sensitivity estimator predicts your network: random assignments, held out."""
    from mpq._support.files import prepare_folder
    from mpq._support.progress import showing_progress
    from mpq.cli.console import new_console, print_comparison

    prepare_folder(options.output)
    console = new_console()
    with showing_progress():
        found = options.run()
        files = found.save(options.output)
    print_comparison(found, console)
    print_files(files)


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

    from mpq.cli.loading import load_callable, load_model
    from mpq.errors import InputError
    from mpq.network.metric import METRICS
    from mpq.problem.assignment import Assignment
    from mpq.workflows.evaluate import evaluate as run

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

    from mpq._support.files import write_files
    from mpq.backends import apply as run
    from mpq.cli.loading import load_model
    from mpq.problem.assignment import Assignment

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
    from mpq._support.files import write_files
    from mpq.backends.text import export as render
    from mpq.problem.assignment import Assignment

    text = render(Assignment.load(assignment), style)
    if output is None:
        typer.echo(text, nl=False)
        return
    (file,) = write_files(output.parent, {output.name: text.encode()})
    typer.echo(f"wrote {file}")


@app.command()
@reporting_errors
def export_onnx(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    data: Data = None,
    batch_size: BatchSize = 1,
    output: Annotated[Path, typer.Option(help="The file.")] = Path("quantized.onnx"),
    debug: Debug = False,
) -> None:
    """Write the network in its assigned formats as ONNX: QDQ int8, 2, 4 and 8-bit weights."""
    from mpq.backends.onnx import export_onnx as run
    from mpq.cli.loading import load_data, load_model
    from mpq.errors import InputError
    from mpq.problem.assignment import Assignment

    found = Assignment.load(assignment)
    if data is None and model != DEMO:
        raise InputError("--model needs --data: a function that yields calibration batches")
    loaded = load_model(model, weights)
    examples = load_data(data or DEMO_DATA, loaded, 0)
    made = run(loaded, found, examples, output, batch_size)
    typer.echo(f"wrote {made.path}")
    typer.echo(f"ONNX Runtime here against the simulation: {made.judged}")


@app.command()
@reporting_errors
@taking(ProfileOptions)
def profile(options: ProfileOptions, debug: Debug = False) -> None:
    """Measure your network on this machine, layer by layer and as a whole: a device for search."""
    from mpq._support.files import prepare_folder, write_files
    from mpq.cli.console import new_console, print_profile

    prepare_folder(options.output.parent)
    found = options.run()
    files = write_files(options.output.parent, {options.output.name: found.to_json().encode()})
    options.journal.unlink(missing_ok=True)
    print_profile(found, new_console())
    print_files(files)
