"""What a command is asked about: the network, its data and rules, as groups of options.

Defaults are those of the dataclasses of ``mpq.workflows``, by reference: none is written again.
Nobody compares options (``eq=False``), and methods that are not made need no time at every start.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli import options as o
from mpq.cli.cache_options import KVCacheOptions
from mpq.cli.score_options import ScoreOptions
from mpq.cli.step_options import StepOptions
from mpq.cli.unset import DEFAULT, several, unless_none
from mpq.network.workload import Workload
from mpq.quantization.ranges import Ranges
from mpq.workflows.rules import Rules
from mpq.workflows.task import METRIC, Task

if TYPE_CHECKING:
    from torch import nn

    from mpq.problem.assignment import Assignment

DEMO = "mpq.demo:make_net"
DEMO_DATA = "mpq.demo:calibration"
DEMO_HELD_OUT = "mpq.demo:held_out"
DEMO_DEVICE = "cortex-m7"
DEMO_COMPARED_LIMITS = ["effective_bits=4", "effective_bits=5", "effective_bits=6"]
DEMO_LIMITS = ["weight_bytes=60KiB", "latency=4.7ms"]


def demo_goal(recipe: str | None) -> tuple[str | None, list[str]]:
    """The device and the limits that come with the built-in network.

    A recipe has candidates of its own, which that device need not run: bytes alone are limited.
    """
    return (DEMO_DEVICE, DEMO_LIMITS) if recipe is None else (None, DEMO_LIMITS[:1])


@dataclass(frozen=True, eq=False)
class SourceOptions:
    """A network and its calibration examples, by the names of functions."""

    model: o.Model = DEMO
    weights: o.Weights = None
    data: o.Data = None

    @property
    def is_demo(self) -> bool:
        """Whether the built-in network is meant."""
        return self.model == DEMO

    @property
    def is_all_demo(self) -> bool:
        """Whether the built-in network and its examples are meant."""
        return self.is_demo and self.data is None

    @property
    def data_spec(self) -> str:
        """Names the calibration examples.

        Raises:
            InputError: If there are none for a network that is not the built-in one.
        """
        if self.data is None and not self.is_demo:
            from mpq.cli.loading import refuse_missing_data

            refuse_missing_data(self.model, "calibration")
        return self.data or DEMO_DATA


@dataclass(frozen=True, eq=False)
class PatternOptions:
    """Which layers are quantized."""

    include: o.Include = None
    exclude: o.Exclude = None


@dataclass(frozen=True, eq=False)
class RuleOptions:
    """What the solver may not choose freely."""

    patterns: PatternOptions = PatternOptions()
    fix: o.Fix = None
    allow: o.Allow = None
    tie: o.Tie = None
    find_ties: o.FindTies = Rules.find_ties
    fold: o.Fold = Rules.fold
    ends: o.Ends = None
    tie_blocks: o.TieBlocks = Rules.tie_blocks
    tie_inner: o.TieInner = Rules.tie_inner

    def rules(self) -> Rules:
        """The rules that the options describe."""
        return Rules(
            include=self.patterns.include or (),
            exclude=self.patterns.exclude or (),
            fix=_pairs("--fix", self.fix),
            # Pairs instead of a dict: their order counts, and a glob may come twice.
            allow=[
                (glob, value.split(","))
                for glob, value in _pairs("--allow", several("--allow", self.allow))
            ],
            tie=several("--tie", self.tie),
            find_ties=self.find_ties,
            fold=self.fold,
            ends=unless_none(self.ends),
            tie_blocks=self.tie_blocks,
            tie_inner=self.tie_inner,
        )


@dataclass(frozen=True, eq=False)
class WorkloadOptions:
    """What is run at once."""

    batch_size: o.BatchSize = Workload.batch_size
    phase: o.Phase = Workload.phase
    tokens: o.Tokens = Workload.tokens

    def workload(self) -> Workload:
        """The workload that the options describe."""
        return Workload(self.batch_size, self.phase, self.tokens)


@dataclass(frozen=True, eq=False)
class RangeOptions:
    """How the network is transformed, ranges are chosen, and weights rounded within them."""

    weight_range: o.WeightRange = Ranges.weight
    activation_range: o.ActivationRange = Ranges.activation
    activations: o.Activations = Task.activations
    rounding: o.Rounding = Task.rounding
    transform: o.Transform = None
    cache: o.Cache = None

    def ranges(self) -> Ranges:
        """The ranges that the options describe; ``Ranges`` refuses a name that is no rule."""
        return Ranges(self.weight_range, self.activation_range)


@dataclass(frozen=True, eq=False)
class MetricOptions:
    """How networks are compared: by their outputs, and by a judge of the user's own."""

    metric: o.Metric = METRIC
    outputs: o.Outputs = None
    judged: ScoreOptions = ScoreOptions()

    @property
    def spelled(self) -> str:
        """The metric, or several outputs as one: commas are for options, terms have a plus."""
        if self.outputs is None:
            return self.metric
        return f"outputs:terms={self.outputs.replace(',', '+')}"


@dataclass(frozen=True, eq=False)
class AsSearchedOptions:
    """How outputs are compared, where the search has settled it."""

    metric: o.AsSearchedMetric = None
    outputs: o.Outputs = None
    allow_randomness: o.AllowRandomness = Task.allow_randomness

    @property
    def spelled(self) -> str | None:
        """See ``MetricOptions.spelled``; ``None``: as in the search."""
        if self.outputs is None:
            return self.metric
        return MetricOptions(outputs=self.outputs).spelled


@dataclass(frozen=True, eq=False)
class AssignedOptions:
    """The network that an assignment is put to work on, and in what memory."""

    model: o.Model = DEMO
    weights: o.Weights = None
    memory: o.Memory = None

    def assignment(self, path: Path) -> "Assignment":
        """The assignment of a file; what may be streamed leaves its codes there."""
        from mpq.network.mapped import streaming
        from mpq.problem.assignment import Assignment

        with streaming(self.memory is not None):
            return Assignment.load(path)

    def network(self) -> "nn.Module":
        """The network, loaded."""
        from mpq.cli.loading import load_model

        return load_model(self.model, self.weights)


@dataclass(frozen=True, eq=False)
class DrawOptions:
    """Where random numbers start: ours, and those of a network that draws."""

    seed: o.Seed = Task.seed
    allow_randomness: o.AllowRandomness = Task.allow_randomness


@dataclass(frozen=True, eq=False)
class CandidateOptions:
    """What the layers may become, where they run, how the answer is made ready, and by whom."""

    precisions: o.Precisions = None
    to: o.Target = Task.to
    split: o.Split = Task.split
    sequential_rounding: o.SequentialRounding = Task.sequential_rounding
    recalibrate: o.Recalibrate = Task.recalibrate
    bias_correction: o.BiasCorrection = Task.bias_correction
    tune: o.Tune = Task.tune
    workers: o.Workers = Task.workers
    cached: KVCacheOptions = KVCacheOptions()
    stepped: StepOptions = StepOptions()


@dataclass(frozen=True, eq=False)
class RunOptions:
    """How the search runs: where random numbers start, and in what memory."""

    draws: DrawOptions = DrawOptions()
    memory: o.Memory = None
    blocks: o.Blocks = Task.blocks


@dataclass(frozen=True, eq=False)
class TaskOptions:
    """A network, its data, and what its layers may become."""

    source: SourceOptions = SourceOptions()
    eval_data: o.EvalData = Task.held_out
    device: o.Device = None
    limit: o.Limits = None
    candidates: CandidateOptions = CandidateOptions()
    rules: RuleOptions = RuleOptions()
    compared: MetricOptions = MetricOptions()
    workload: WorkloadOptions = WorkloadOptions()
    ranges: RangeOptions = RangeOptions()
    run: RunOptions = RunOptions()

    def task(self, device: str | None) -> Task:
        """The task, with network and data loaded.

        Args:
            device: The device, or the built-in network's.
        """
        from mpq.cli.loading import load_data, load_model

        source, draws = self.source, self.run.draws
        # First of all: that --data is missing is said before the model's code runs.
        spec, kv_cache = source.data_spec, self.candidates.cached.cache()
        steps = self.candidates.stepped.steps()
        held_out = held_out_spec(self.eval_data, source.is_all_demo)
        model = load_model(source.model, source.weights)
        return Task(
            model,
            load_data(spec, model, draws.seed),
            held_out=None if held_out is None else load_data(held_out, model, draws.seed),
            device=device,
            candidates=listed(self.candidates.precisions),
            to=self.candidates.to,
            split=self.candidates.split,
            rules=self.rules.rules(),
            workload=self.workload.workload(),
            metric=self.compared.spelled,
            ranges=self.ranges.ranges(),
            activations=self.ranges.activations,
            rounding=self.ranges.rounding,
            sequential_rounding=self.candidates.sequential_rounding,
            recalibrate=self.candidates.recalibrate,
            cache=self.ranges.cache,
            workers=workers_of(self.candidates.workers),
            bias_correction=self.candidates.bias_correction,
            tune=unless_none(self.candidates.tune),
            transforms=listed_parts(unless_none(self.ranges.transform)),
            kv_cache=kv_cache,
            steps=steps,
            seed=draws.seed,
            allow_randomness=draws.allow_randomness,
            memory=self.run.memory,
            blocks=self.run.blocks,
            score=self.compared.judged.built(),
        )


def workers_of(given: str | None) -> str | None:
    """As given, or the processes that ``torchrun`` started."""
    from mpq._support.ranks import is_launched

    return given or ("torchrun" if is_launched() else None)


def held_out_spec(eval_data: str | None, is_all_demo: bool) -> str | None:
    """Names the held-out examples; ``None`` where none were named.

    Args:
        eval_data: What ``--eval-data`` names.
        is_all_demo: Whether the built-in network and its examples are meant: beside the user's own
            examples the built-in ones would be other data.
    """
    return eval_data or (DEMO_HELD_OUT if is_all_demo else None)


def listed(precisions: str | None) -> list[str] | None:
    """Precisions that were written with commas; ``None``: the task's own default."""
    return None if precisions is None or precisions == DEFAULT else precisions.split(",")


def listed_parts(written: str | None) -> list[str]:
    """Names that were written with commas, and commas between the options of one as well.

    >>> listed_parts("rotate:untie=true,learned=true,smooth")
    ['rotate:untie=true,learned=true', 'smooth']
    """
    found: list[str] = []
    for item in () if written is None else written.split(","):
        if found and "=" in item and ":" not in item.partition("=")[0]:
            found[-1] += f",{item}"
        else:
            found.append(item)
    return found


def _pairs(option: str, items: list[str] | None) -> list[tuple[str, str]]:
    from mpq.errors import InputError

    # Split at the first "=", which no name of a layer has in practice.
    pairs = [item.partition("=") for item in items or ()]
    for item, (glob, _, value) in zip(items or (), pairs, strict=True):
        if not glob or not value:
            raise InputError(f"{option} {item!r}: write GLOB=PRECISION, such as 'head=w8a8'")
    return [(glob.strip(), value.strip()) for glob, _, value in pairs]
