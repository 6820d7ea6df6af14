"""Options of the command line, and the calls that they describe."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from mpq.hardware_profiles import NetworkProfile
    from mpq.report.estimators import EstimatorComparison
    from mpq.report.frontier import Frontier
    from mpq.workflows.result import SearchResult
    from mpq.workflows.session import Session

DEMO = "mpq.demo:make_net"
DEMO_DATA = "mpq.demo:calibration"
DEMO_HELD_OUT = "mpq.demo:held_out"
DEMO_DEVICE = "cortex-m7"
DEMO_COMPARED_LIMITS = ["effective_bits=4", "effective_bits=5", "effective_bits=6"]
DEMO_LIMITS = ["weight_bytes=40KiB", "latency=4.5ms"]

Model = Annotated[
    str,
    typer.Option(help="Network: package.module:callable or path/to/file.py:callable."),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights: .safetensors, or a torch file of tensors only.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Function that yields calibration batches, named as --model, or a source that needs "
        "no data: batch-norm:shape=3x32x32, random-tokens, self-generated. See `mpq sources`."
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(help="Function that yields held-out batches. Default: a quarter of --data."),
]
Device = Annotated[
    str | None, typer.Option(help="Device (see `mpq devices`), or path/to/profile.json or .csv.")
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
    typer.Option(
        help="Candidates: w4a4,w4a8,w8a8. Default: what the device runs, or was measured at."
    ),
]
Sensitivity = Annotated[
    str, typer.Option(help="Estimator with options: sketch:num_probes=4. See `mpq estimators`.")
]
SolverName = Annotated[
    str,
    typer.Option("--solver", help="Solver with options: ilp:time_limit_s=60. See `mpq solvers`."),
]
Refine = Annotated[
    int,
    typer.Option(help="Rounds of estimating anew at the assignment found (not for a frontier)."),
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
Phase = Annotated[
    str | None,
    typer.Option(help="Price for prefill (a whole prompt) or decode (one new token)."),
]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens of the prompt, for --phase prefill. Default: as traced.")
]
WeightRange = Annotated[str, typer.Option(help="minmax, percentile or mse.")]
ActivationRange = Annotated[str, typer.Option(help="minmax, percentile or mse.")]
Seed = Annotated[int, typer.Option(help="Of estimator and solver.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
AssignmentFile = Annotated[Path, typer.Argument(help="assignment.json of a search.")]
Resource = Annotated[
    str | None, typer.Option(help="Frontier over this resource. Default: of the first limit.")
]
Points = Annotated[int, typer.Option(help="Limits that the frontier is solved for.")]
Hull = Annotated[
    bool, typer.Option("--hull", help="The frontier's whole convex hull (additive losses).")
]
Minimize = Annotated[
    str | None,
    typer.Option(help="Resource to make small, within limits; needs one of the --max options."),
]
MaxPredicted = Annotated[
    float | None, typer.Option("--max-loss", help="Largest predicted loss, for --minimize.")
]
MaxMeasured = Annotated[
    float | None,
    typer.Option("--max-measured-loss", help="Largest loss measured on held-out examples."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-accuracy-drop", help="Largest measured drop of accuracy; 0.01: a point."),
]
Alternatives = Annotated[
    int, typer.Option(help="So many of the best assignments, measured: alternatives.csv.")
]
Differing = Annotated[
    int, typer.Option(help="In how many layers any two alternatives differ at least.")
]
TableFile = Annotated[
    Path, typer.Argument(help="problem.json of a search, or a CSV: layer,precision,loss_nats,...")
]
Output = Annotated[Path, typer.Option(help="Folder for the results.")]
Estimators = Annotated[
    list[str] | None,
    typer.Option("--estimator", help="Estimator with options; can be given repeatedly."),
]
RandomAssignments = Annotated[int, typer.Option(help="Random assignments near every limit.")]
MaxLoss = Annotated[
    float, typer.Option(help="Assignments that lose more are left out of correlations.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Try every frontier point on held-out data.")
]


RuntimeName = Annotated[
    str,
    typer.Option("--runtime", help="Runtime with options: onnxruntime:num_threads=2."),
]
Whole = Annotated[
    int, typer.Option("--whole", help="Networks at mixed precisions to correct the sums with.")
]
Rounds = Annotated[int, typer.Option(help="How often everything is run.")]
MaxInterval = Annotated[
    float, typer.Option(help="Accepted half width of a 95 % interval, relative to the median.")
]
Clock = Annotated[
    str | None,
    typer.Option(help="cpu (processor time) or wall. Default: cpu for one thread."),
]
ProfileFile = Annotated[
    Path, typer.Option("--output", help="The profile; beside it PATH.journal until it is finished.")
]


@dataclass(frozen=True)
class NetworkOptions:
    """A network, its data, and what its layers may become."""

    model: Model = DEMO
    weights: Weights = None
    data: Data = None
    eval_data: EvalData = None
    device: Device = None
    limit: Limits = None
    precisions: Precisions = None
    include: Include = None
    exclude: Exclude = None
    fix: Fix = None
    allow: Allow = None
    tie: Tie = None
    find_ties: FindTies = True
    fold: Fold = True
    metric: Metric = "kl"
    batch_size: BatchSize = 1
    phase: Phase = None
    tokens: Tokens = None
    weight_range: WeightRange = "mse"
    activation_range: ActivationRange = "mse"
    seed: Seed = 0

    @property
    def is_demo(self) -> bool:
        """Whether the built-in network is meant."""
        return self.model == DEMO

    def loaded(self) -> dict[str, Any]:
        """Arguments that ``mpq.search`` and ``mpq.compare`` share, with everything loaded."""
        from mpq.cli.loading import load_data, load_model
        from mpq.errors import InputError

        if not self.is_demo and self.data is None:
            raise InputError("--model needs --data: a function that yields calibration batches")
        is_default = self.is_demo and self.data is None
        held_out = self.eval_data or (DEMO_HELD_OUT if is_default else None)
        model = load_model(self.model, self.weights)
        return {
            "model": model,
            "calibration": load_data(self.data or DEMO_DATA, model, self.seed),
            "held_out": None if held_out is None else load_data(held_out, model, self.seed),
            "device": self.device,
            "precisions": self.precisions.split(",") if self.precisions else None,
            "include": self.include or (),
            "exclude": self.exclude or (),
            "fix": dict(_pairs("--fix", self.fix)),
            "allow": {glob: ps.split(",") for glob, ps in _pairs("--allow", self.allow)},
            "tie": self.tie or (),
            "find_ties": self.find_ties,
            "fold": self.fold,
            "metric": self.metric,
            "batch_size": self.batch_size,
            "phase": self.phase,
            "tokens": self.tokens,
            "weight_range": self.weight_range,
            "activation_range": self.activation_range,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class SearchOptions(NetworkOptions):
    """How the search is done, and which frontier is drawn."""

    sensitivity: Sensitivity = "sketch"
    solver: SolverName = "auto"
    refine: Refine = 0
    minimize: Minimize = None
    max_loss: MaxPredicted = None
    max_measured_loss: MaxMeasured = None
    max_accuracy_drop: MaxDrop = None
    output: Output = Path("mpq-run")
    resource: Resource = None
    points: Points = 20
    hull: Hull = False
    measure: Measure = False
    alternatives: Alternatives = 0
    differing: Differing = 1

    def run(self) -> "SearchResult":
        """Runs the search."""
        from mpq.errors import InputError
        from mpq.hardware_profiles import check_sum
        from mpq.workflows.search import search

        if self.points < 2:
            raise InputError(f"a frontier has at least 2 points; got {self.points}")
        if self.alternatives < 0 or self.differing < 1:
            given = f"got {self.alternatives} and {self.differing}"
            raise InputError(f"alternatives is at least 0 and differing at least 1; {given}")
        device, limits = self._asked
        for resource in filter(None, (self.resource, self.minimize)):
            check_sum(resource, device is not None)
        return search(
            **{**self.loaded(), "device": device, "limits": limits},
            sensitivity=self.sensitivity, solver=self.solver,
            refine=self.refine, minimize=self.minimize, max_loss=self.max_loss,
            max_measured_loss=self.max_measured_loss, max_accuracy_drop=self.max_accuracy_drop,
        )  # fmt: skip

    def frontier(self, result: "SearchResult") -> "Frontier":
        """The frontier that the options ask for."""
        found = result.frontier(self.resource, self.points, self.hull)
        return self.session().measured(found) if self.measure else found

    def session(self) -> "Session":
        """Measures what the result predicts."""
        from mpq.cli.loading import open_session

        return open_session(**self.loaded() | {"device": self._asked[0]})

    @property
    def _asked(self) -> tuple[str | None, Sequence[str]]:
        """Device and limits; those of the demo where none are given."""
        demo = (self.device or DEMO_DEVICE, [] if self.minimize else DEMO_LIMITS)
        return demo if self.is_demo and not self.limit else (self.device, self.limit or [])


@dataclass(frozen=True)
class CompareOptions(NetworkOptions):
    """Which estimators are compared, and on what."""

    estimators: Estimators = None
    solver: SolverName = "auto"
    random: RandomAssignments = 100
    max_loss: MaxLoss = 0.5
    refine: Refine = 0
    output: Output = Path("mpq-compare")

    def run(self) -> "EstimatorComparison":
        """Runs the comparison."""
        from mpq.workflows.compare import DEFAULT_ESTIMATORS, compare

        limits = self.limit or (DEMO_COMPARED_LIMITS if self.is_demo else ())
        return compare(
            **self.loaded(),
            limits=limits,
            estimators=self.estimators or DEFAULT_ESTIMATORS,
            solver=self.solver,
            num_random=self.random,
            max_loss=self.max_loss,
            refine=self.refine,
            folder=self.output,
        )


@dataclass(frozen=True)
class ProfileOptions:
    """Which network is measured on this machine, and how."""

    model: Model = DEMO
    weights: Weights = None
    data: Data = None
    runtime: RuntimeName = "onnxruntime"
    precisions: Precisions = None
    batch_size: BatchSize = 1
    whole: Whole = 24
    rounds: Rounds = 60
    max_interval: MaxInterval = 0.1
    clock: Clock = None
    include: Include = None
    exclude: Exclude = None
    fold: Fold = True
    seed: Seed = 0
    output: ProfileFile = Path("profile.json")

    def run(self) -> "NetworkProfile":
        """Measures; finished rounds are kept beside the output, and gone on with after a crash."""
        from mpq.cli.loading import load_data, load_model
        from mpq.errors import InputError
        from mpq.hardware_profiles.profiling import profile

        if self.model != DEMO and self.data is None:
            raise InputError("--model needs --data: a function that yields calibration batches")
        model = load_model(self.model, self.weights)
        return profile(
            model,
            load_data(self.data or DEMO_DATA, model, self.seed),
            runtime=self.runtime,
            precisions=self.precisions.split(",") if self.precisions else None,
            batch_size=self.batch_size,
            whole=self.whole,
            rounds=self.rounds,
            max_interval=self.max_interval,
            clock=self.clock,
            include=self.include or (),
            exclude=self.exclude or (),
            fold=self.fold,
            journal=self.journal,
            name=self.output.stem,
            seed=self.seed,
            progress=True,
        )

    @property
    def journal(self) -> Path:
        """Where finished rounds are."""
        return self.output.with_name(f"{self.output.name}.journal")


def taking(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first parameter gathers the options that a dataclass declares."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            names = [field.name for field in fields(options)]
            command(options(**{name: values.pop(name) for name in names}), **values)

        hints = get_type_hints(options, include_extras=True)
        declared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [*declared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _pairs(option: str, items: list[str] | None) -> list[tuple[str, str]]:
    from mpq.errors import InputError

    pairs = [item.partition("=") for item in items or ()]
    for item, (glob, _, value) in zip(items or (), pairs, strict=True):
        if not glob or not value:
            raise InputError(f"{option} {item!r}: write GLOB=PRECISION, such as 'head=w8a8'")
    return [(glob.strip(), value.strip()) for glob, _, value in pairs]
