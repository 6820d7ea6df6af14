"""Commands that work on a network, a table or an assignment."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mpq.cli.app import app, reporting_errors
from mpq.cli.options import (
    Alternatives,
    AssignmentFile,
    BatchSize,
    Data,
    Debug,
    Differing,
    Limits,
    MaxPredicted,
    Metric,
    Minimize,
    Model,
    Seed,
    SolverName,
    TableFile,
    Weights,
)
from mpq.cli.requests import AlternativeOptions, CompareOptions, ProfileOptions, SearchOptions
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions, write
from mpq.cli.task_options import DEMO, DEMO_DATA, DEMO_HELD_OUT
from mpq.network.workload import Workload
from mpq.workflows.defaults import SOLVER
from mpq.workflows.task import METRIC, Task


@app.command()
@reporting_errors
@taking
def search(options: SearchOptions, talk: TalkOptions) -> None:
    """Find the best bit width for every layer within limits, on the built-in demo or your model."""
    from mpq._support.files import prepare_folder
    from mpq.cli.console import print_frontier, print_result
    from mpq.report.save import save_alternatives

    prepare_folder(options.output)
    has_others = options.others.alternatives > 0
    with talk.progress():
        result = options.run()
        files = result.save(options.output, options.frontier(result))
        if has_others:
            found = options.alternatives(result)
            files += save_alternatives(found, options.output, result.run_id)
    talk.answer(result.assignment.to_json(), lambda console: print_result(result, console))
    if has_others and not talk.as_json:
        talk.answer("", lambda console: print_frontier(found, console, "Alternatives"))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def frontier(options: SearchOptions, talk: TalkOptions) -> None:
    """Least loss for every amount of one resource: frontier.csv, .json and .png only."""
    from mpq._support.files import prepare_folder
    from mpq.cli.console import print_frontier
    from mpq.report.save import save_frontier

    prepare_folder(options.output)
    with talk.progress():
        found = options.run_frontier()
        files = save_frontier(found, options.output)
    talk.answer(found.to_json(), lambda console: print_frontier(found, console))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def solve(
    table: TableFile,
    limit: Limits = None,
    solver: SolverName = SOLVER,
    minimize: Minimize = None,
    max_loss: MaxPredicted = None,
    alternatives: Alternatives = 1,
    differing: Differing = AlternativeOptions.differing,
    seed: Seed = Task.seed,
    *,
    talk: TalkOptions,
) -> None:
    """Solve a table that somebody else made, or a search's problem.json again; JSON. No torch."""
    from mpq.cli.problem_file import load_problem
    from mpq.problem.solution import record
    from mpq.solvers import SOLVERS
    from mpq.solvers.queries.solve import answers

    problem, resources = load_problem(table, limit or ())
    built = SOLVERS.build(solver, seed)
    found = answers(problem, resources, built, minimize, max_loss, alternatives, differing)
    write(json.dumps([record(asked, solution) for asked, solution in found], indent=1))


@app.command()
@reporting_errors
@taking
def compare(options: CompareOptions, talk: TalkOptions) -> None:
    """Measure which sensitivity estimator predicts your network: random assignments, held out."""
    from mpq._support.files import prepare_folder
    from mpq.cli.console import print_comparison

    prepare_folder(options.output)
    with talk.progress():
        found = options.run()
        files = found.save(options.output)
    rows = found.table().to_json(orient="records", indent=1)
    talk.answer(rows, lambda console: print_comparison(found, console))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def evaluate(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option(help="Function that yields held-out batches; named as --model.")
    ] = None,
    metric: Metric = METRIC,
    *,
    talk: TalkOptions,
) -> None:
    """Measure an assignment on held-out examples: KL divergence, accuracy, cross entropy; JSON."""
    from mpq.cli.loading import load_callable, load_model
    from mpq.errors import InputError
    from mpq.problem.assignment import Assignment
    from mpq.workflows.evaluate import evaluate as run

    found = Assignment.load(assignment)
    if data is None and model != DEMO:
        raise InputError("--model needs --data: a function that yields held-out batches")
    examples = load_callable(data or DEMO_HELD_OUT)
    measured = run(load_model(model, weights), found, examples, metric)
    write(json.dumps({name: m.to_dict() for name, m in measured.items()}, indent=1))


@app.command()
@reporting_errors
@taking
def apply(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    output: Annotated[Path, typer.Option(help="Where the rounded weights go.")] = Path(
        "quantized.safetensors"
    ),
    *,
    talk: TalkOptions,
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
    files = write_files(output.parent, {output.name: content})
    talk.answer({"files": [str(file) for file in files]}, lambda _: talk.wrote(files))


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
        write(text.removesuffix("\n"))
        return
    (file,) = write_files(output.parent, {output.name: text.encode()})
    write(f"wrote {file}")


@app.command()
@reporting_errors
def export_onnx(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    data: Data = None,
    batch_size: BatchSize = Workload.batch_size,
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
    examples = load_data(data or DEMO_DATA, loaded, Task.seed)
    made = run(loaded, found, examples, output, batch_size)
    write(f"wrote {made.path}")
    write(f"ONNX Runtime here against the simulation: {made.judged}")


@app.command()
@reporting_errors
@taking
def profile(options: ProfileOptions, talk: TalkOptions) -> None:
    """Measure your network on this machine, layer by layer and as a whole: a device for search."""
    from mpq._support.files import prepare_folder, write_files
    from mpq.cli.console import print_profile

    prepare_folder(options.output.parent)
    with talk.progress():
        found = options.run()
    files = write_files(options.output.parent, {options.output.name: found.to_json().encode()})
    options.journal.unlink(missing_ok=True)
    talk.answer(found.to_json(), lambda console: print_profile(found, console))
    talk.wrote(files)
