"""The command line: ``mpq --help``. Imports torch only where a command needs it."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from mpq.result import SearchResult

app = typer.Typer(
    name="mpq",
    help="Mixed-precision quantization search: a bit width per layer for a budget on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
)

DEMO = "mpq.demo:make_net"
DEMO_DATA = "mpq.demo:calibration"
DEMO_HELD_OUT = "mpq.demo:held_out"
DEMO_DEVICE = "cortex-m7"
DEMO_LIMITS = ["weight_bytes=40KiB", "latency=4.5ms"]

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
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


Model = Annotated[
    str,
    typer.Option(help="Network: package.module:callable or path/to/file.py:callable."),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights: .safetensors, or a torch file of tensors only.")
]
Data = Annotated[
    str | None, typer.Option(help="Function that yields calibration batches; named as --model.")
]
EvalData = Annotated[
    str | None,
    typer.Option(help="Function that yields held-out batches. Default: a quarter of --data."),
]
Device = Annotated[
    str | None, typer.Option(help="Device (see `mpq devices`), or path/to/profile.json.")
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="latency=2.5ms, weight_bytes=300KiB, latency=0.6x:w8a8, ... Can be given repeatedly.",
    ),
]
Precisions = Annotated[
    str | None,
    typer.Option(help="Candidates, such as w4a4,w4a8,w8a8. Default: what the device runs."),
]
Sensitivity = Annotated[
    str, typer.Option(help="Estimator with options: sketch:num_probes=4. See `mpq estimators`.")
]
SolverName = Annotated[
    str,
    typer.Option("--solver", help="Solver with options: ilp:time_limit_s=60. See `mpq solvers`."),
]
Include = Annotated[list[str] | None, typer.Option(help="Glob: quantize only these layers.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Glob: leave these layers as they are.")]
Fix = Annotated[list[str] | None, typer.Option(help="GLOB=PRECISION: not the solver's choice.")]
Allow = Annotated[list[str] | None, typer.Option(help="GLOB=P1,P2: candidates of these layers.")]
Tie = Annotated[list[str] | None, typer.Option(help="Glob: these layers share one precision.")]
FindTies = Annotated[
    bool, typer.Option("--find-ties/--no-find-ties", help="Tie layers that read one tensor.")
]
Fold = Annotated[bool, typer.Option("--fold/--no-fold", help="Fold BatchNorm first.")]
BatchSize = Annotated[int, typer.Option(help="Examples at once, for latency and energy.")]
WeightRange = Annotated[str, typer.Option(help="minmax, percentile or mse.")]
ActivationRange = Annotated[str, typer.Option(help="minmax, percentile or mse.")]
Seed = Annotated[int, typer.Option(help="Of estimator and solver.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
AssignmentFile = Annotated[Path, typer.Argument(help="assignment.json of a search.")]
Resource = Annotated[
    str | None, typer.Option(help="Frontier over this resource. Default: of the first limit.")
]
Points = Annotated[int, typer.Option(help="Limits that the frontier is solved for.")]
Measure = Annotated[
    bool, typer.Option("--measure", help="Try every frontier point on held-out data.")
]


@app.command()
@reporting_errors
def search(
    model: Model = DEMO,
    weights: Weights = None,
    data: Data = None,
    eval_data: EvalData = None,
    device: Device = None,
    limit: Limits = None,
    precisions: Precisions = None,
    sensitivity: Sensitivity = "sketch",
    solver: SolverName = "ilp",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("mpq-run"),
    resource: Resource = None,
    points: Points = 20,
    measure: Measure = False,
    include: Include = None,
    exclude: Exclude = None,
    fix: Fix = None,
    allow: Allow = None,
    tie: Tie = None,
    find_ties: FindTies = True,
    fold: Fold = True,
    batch_size: BatchSize = 1,
    weight_range: WeightRange = "mse",
    activation_range: ActivationRange = "mse",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Find the best bit width for every layer within limits, on the built-in demo or your model."""
    from mpq.output import prepare_folder
    from mpq.progress import showing_progress
    from mpq.report.console import new_console, print_result

    prepare_folder(output)
    console = new_console()
    with showing_progress():
        result = _search(locals())
        frontier = result.frontier(resource, points, measure)
        files = result.save(output, frontier)
    print_result(result, console)
    for file in files:
        console.print(f"wrote {file}", highlight=False)


@app.command()
@reporting_errors
def frontier(
    model: Model = DEMO,
    weights: Weights = None,
    data: Data = None,
    eval_data: EvalData = None,
    device: Device = None,
    limit: Limits = None,
    precisions: Precisions = None,
    sensitivity: Sensitivity = "sketch",
    solver: SolverName = "ilp",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("mpq-run"),
    resource: Resource = None,
    points: Points = 20,
    measure: Measure = False,
    include: Include = None,
    exclude: Exclude = None,
    fix: Fix = None,
    allow: Allow = None,
    tie: Tie = None,
    find_ties: FindTies = True,
    fold: Fold = True,
    batch_size: BatchSize = 1,
    weight_range: WeightRange = "mse",
    activation_range: ActivationRange = "mse",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Least loss for every amount of one resource: frontier.csv and frontier.png only."""
    from mpq.output import prepare_folder, write_files
    from mpq.progress import showing_progress
    from mpq.report import frontier_table, png
    from mpq.report.console import new_console, print_frontier

    prepare_folder(output)
    console = new_console()
    with showing_progress():
        result = _search(locals())
        found = result.frontier(resource, points, measure)
        table = frontier_table(found).to_csv(index=False)
        picture = png(result.plot("frontier", found))
        files = write_files(output, {"frontier.csv": table.encode(), "frontier.png": picture})
    print_frontier(found, console)
    for file in files:
        console.print(f"wrote {file}", highlight=False)


def _search(options: dict[str, Any]) -> "SearchResult":
    """Runs the search that the options of ``search`` or ``frontier`` describe."""
    from mpq.errors import InputError
    from mpq.loading import load_callable, load_model
    from mpq.searching import search as run

    is_demo = options["model"] == DEMO
    data, limits = options["data"], options["limit"]
    if not is_demo and data is None:
        raise InputError("--model needs --data: a function that yields calibration batches")
    held_out = options["eval_data"] or (DEMO_HELD_OUT if is_demo and data is None else None)
    device = options["device"]
    if is_demo and not limits:
        device, limits = device or DEMO_DEVICE, DEMO_LIMITS
    text = options["precisions"]
    return run(
        load_model(options["model"], options["weights"]),
        load_callable(data or DEMO_DATA),
        limits=limits or (),
        device=device,
        precisions=text.split(",") if text else None,
        sensitivity=options["sensitivity"],
        solver=options["solver"],
        held_out=None if held_out is None else load_callable(held_out),
        include=options["include"] or (),
        exclude=options["exclude"] or (),
        fix=dict(_pairs("--fix", options["fix"])),
        allow={glob: ps.split(",") for glob, ps in _pairs("--allow", options["allow"])},
        tie=options["tie"] or (),
        find_ties=options["find_ties"],
        fold=options["fold"],
        batch_size=options["batch_size"],
        weight_range=options["weight_range"],
        activation_range=options["activation_range"],
        seed=options["seed"],
    )


def _pairs(option: str, items: list[str] | None) -> list[tuple[str, str]]:
    from mpq.errors import InputError

    pairs = [item.partition("=") for item in items or ()]
    for item, (glob, _, value) in zip(items or (), pairs, strict=True):
        if not glob or not value:
            raise InputError(f"{option} {item!r}: write GLOB=PRECISION, such as 'head=w8a8'")
    return [(glob.strip(), value.strip()) for glob, _, value in pairs]


@app.command()
@reporting_errors
def evaluate(
    assignment: AssignmentFile,
    model: Model = DEMO,
    weights: Weights = None,
    data: Annotated[
        str, typer.Option(help="Function that yields held-out batches; named as --model.")
    ] = DEMO_HELD_OUT,
    debug: Debug = False,
) -> None:
    """Measure an assignment on held-out examples: KL divergence, accuracy, cross entropy; JSON."""
    import json
    from dataclasses import asdict

    from mpq.assignment import Assignment
    from mpq.evaluation import evaluate as run
    from mpq.loading import load_callable, load_model

    found = Assignment.load(assignment)
    measured = run(load_model(model, weights), found, load_callable(data))
    typer.echo(json.dumps({name: asdict(m) for name, m in measured.items()}, indent=1))


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
        str | None, typer.Option(help="One device: every number and its source.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List the devices that ship with mpq."""
    from mpq.hardware_profiles import device_names, load_device
    from mpq.report.console import new_console, new_table

    table = new_table()
    if show is None:
        for heading in ("device", "what it is", "latency and energy are", "runs as"):
            table.add_column(heading)
        for name in device_names():
            profile = load_device(name)
            table.add_row(name, profile.title, profile.basis, ", ".join(profile.compute))
    else:
        profile = load_device(show)
        table.title = f"{profile.title}. {profile.notes}"
        for heading in ("number", "value", "source"):
            table.add_column(heading, no_wrap=heading != "source")
        for name, number in profile.numbers().items():
            table.add_row(name, f"{number.value:.4g}", number.source)
    new_console().print(table)


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


def _print_parts(registry: Any) -> None:
    from mpq.report.console import new_console, new_table

    table = new_table()
    for heading in (registry.kind, "what it does", "options"):
        table.add_column(heading)
    for part in registry:
        options = (f"{name}={value}" for name, value in registry.options(part).items())
        table.add_row(part.name, part.summary, ",".join(options))
    new_console().print(table)


def main() -> None:
    """Entry point of the ``mpq`` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
