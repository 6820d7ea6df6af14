"""Options of the command line, and the search that they describe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mpq.result import SearchResult

DEMO = "mpq.demo:make_net"
DEMO_DATA = "mpq.demo:calibration"
DEMO_HELD_OUT = "mpq.demo:held_out"
DEMO_DEVICE = "cortex-m7"
DEMO_LIMITS = ["weight_bytes=40KiB", "latency=4.5ms"]

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
Refine = Annotated[
    int, typer.Option(help="Rounds of estimating anew at the assignment that was found.")
]
Include = Annotated[list[str] | None, typer.Option(help="Glob: quantize only these layers.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Glob: leave these layers as they are.")]
Fix = Annotated[list[str] | None, typer.Option(help="GLOB=PRECISION: not the solver's choice.")]
Allow = Annotated[list[str] | None, typer.Option(help="GLOB=P1,P2: candidates of these layers.")]
Tie = Annotated[list[str] | None, typer.Option(help="Glob: these layers share one precision.")]
FindTies = Annotated[
    bool, typer.Option("--find-ties/--no-find-ties", help="Tie layers that read one tensor.")
]
Metric = Annotated[
    str, typer.Option(help="kl; for outputs that are no probabilities squared-error or cosine.")
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


def run_search(options: dict[str, Any]) -> "SearchResult":
    """Runs the search that the options of ``search`` or ``frontier`` describe."""
    from mpq.errors import InputError
    from mpq.hardware_profiles import check_resource
    from mpq.loading import load_callable, load_model
    from mpq.searching import search as run

    is_demo = options["model"] == DEMO
    data, limits = options["data"], options["limit"]
    if not is_demo and data is None:
        raise InputError("--model needs --data: a function that yields calibration batches")
    if options["points"] < 2:
        raise InputError(f"a frontier has at least 2 points; got {options['points']}")
    held_out = options["eval_data"] or (DEMO_HELD_OUT if is_demo and data is None else None)
    device = options["device"]
    if is_demo and not limits:
        device, limits = device or DEMO_DEVICE, DEMO_LIMITS
    if options["resource"] is not None:
        check_resource(options["resource"], device is not None)
    text = options["precisions"]
    return run(
        load_model(options["model"], options["weights"]),
        load_callable(data or DEMO_DATA),
        limits=limits or (),
        device=device,
        precisions=text.split(",") if text else None,
        sensitivity=options["sensitivity"],
        solver=options["solver"],
        refine=options["refine"],
        held_out=None if held_out is None else load_callable(held_out),
        include=options["include"] or (),
        exclude=options["exclude"] or (),
        fix=dict(_pairs("--fix", options["fix"])),
        allow={glob: ps.split(",") for glob, ps in _pairs("--allow", options["allow"])},
        tie=options["tie"] or (),
        find_ties=options["find_ties"],
        fold=options["fold"],
        metric=options["metric"],
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
