"""What a command was asked for: groups of options, and the calls that they describe."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli import options as o
from mpq.network.workload import Workload
from mpq.workflows import defaults
from mpq.workflows.objective import Objective
from mpq.workflows.rules import Rules
from mpq.workflows.task import Task

if TYPE_CHECKING:
    from mpq.hardware_profiles import NetworkProfile
    from mpq.report.frontier import Frontier
    from mpq.workflows.follow import Way
    from mpq.workflows.forecast import Curve
    from mpq.workflows.plan import Plan
    from mpq.workflows.result import SearchResult
    from mpq.workflows.session import Session

from mpq.cli.methods import MethodOptions
from mpq.cli.task_options import (
    DrawOptions,
    PatternOptions,
    RangeOptions,
    SourceOptions,
    TaskOptions,
    demo_goal,
    listed,
)
from mpq.cli.watching import Kept, epochs_in, kept_in


@dataclass(frozen=True, eq=False)
class ReadingOptions:
    """What of a table or a problem is solved."""

    additive: o.Additive = False
    allow_missing: o.AllowMissing = False


@dataclass(frozen=True, eq=False)
class ObjectiveOptions:
    """What is made small instead of the loss."""

    minimize: o.Minimize = None
    # A dataclass's defaults are attributes of its class, so that each is written down once.
    max_loss: o.MaxPredicted = Objective.max_loss
    max_measured_loss: o.MaxMeasured = Objective.max_measured_loss
    max_accuracy_drop: o.MaxDrop = Objective.max_accuracy_drop
    max_score_drop: o.MaxScoreDrop = Objective.max_score_drop

    def objective(self) -> Objective | None:
        """The objective, if there is one."""
        return Objective.of(
            self.minimize,
            self.max_loss,
            self.max_measured_loss,
            self.max_accuracy_drop,
            self.max_score_drop,
        )


@dataclass(frozen=True, eq=False)
class FrontierOptions:
    """Which frontier is drawn."""

    resource: o.Resource = None
    points: o.Points = defaults.NUM_POINTS
    hull: o.Hull = False
    measure: o.Measure = False

    @property
    def num_points(self) -> int | None:
        """Amounts that are solved for; ``None``: the whole hull."""
        return None if self.hull else self.points

    def check(self) -> None:
        """Refuses a frontier of one point before anything is measured.

        Raises:
            InputError: If it is one.
        """
        from mpq._support.bounds import check_whole
        from mpq.errors import InputError

        check_whole("points", self.points)
        # Asked here as well as by the solvers' query, which comes after the estimate.
        if self.points < 2:
            raise InputError(f"a frontier has at least 2 points; got {self.points}")


@dataclass(frozen=True, eq=False)
class AlternativeOptions:
    """Which other assignments are measured."""

    alternatives: o.Alternatives = 0
    differing: o.Differing = 1

    def check(self) -> None:
        """Refuses numbers that mean nothing, before anything is measured.

        Raises:
            InputError: If one is too small.
        """
        from mpq._support.bounds import check_whole
        from mpq.errors import InputError

        check_whole("alternatives", self.alternatives)
        check_whole("differing", self.differing)
        if self.alternatives < 0 or self.differing < 1:
            raise InputError(
                "alternatives is at least 0 and differing at least 1; got "
                f"{self.alternatives} and {self.differing}"
            )


@dataclass(frozen=True, eq=False)
class EffortOptions:
    """How much of the work is done."""

    shard: o.ShardOf = None
    dry_run: o.DryRun = False
    time: o.Time = None

    def check(self) -> None:
        """Refuses to plan where several processes work.

        Raises:
            InputError: If they do.
        """
        from mpq._support.ranks import is_launched
        from mpq.errors import InputError

        if not self.dry_run and self.time is None:
            return
        if self.dry_run and self.time is not None:
            raise InputError(
                "--dry-run says what a search takes, and --time makes it fit: give one of them"
            )
        # Their clocks would not agree on what is given up.
        if is_launched() or self.shard is not None:
            raise InputError(
                "--dry-run and --time plan one process: leave them out under torchrun and with "
                "--shard (of several, each takes its share of what grows with the examples)"
            )


@dataclass(frozen=True, eq=False)
class SearchOptions:
    """How the search is done, and which frontier is drawn."""

    asked: TaskOptions = field(default_factory=TaskOptions)
    how: MethodOptions = field(default_factory=MethodOptions)
    # One instance for all may be the default, as it is frozen; ``eq=False`` leaves it hashable,
    # which ``dataclass`` asks of a default.
    objective: ObjectiveOptions = ObjectiveOptions()
    output: o.Output = Path("mpq-run")
    curve: FrontierOptions = FrontierOptions()
    others: AlternativeOptions = AlternativeOptions()
    section: o.Sections = None
    effort: EffortOptions = EffortOptions()

    @property
    def kept(self) -> list[Kept]:
        """What an interruption leaves on disk."""
        tune = self.asked.candidates.tune
        return [*kept_in(self.asked.ranges.cache), *epochs_in(self.output if tune else None)]

    def plan(self, has_question: bool) -> "Plan":
        """What the search will take; of one that has to have a limit or an objective."""
        from mpq.workflows.plan import plan
        from mpq.workflows.search import goal

        device, limits = self._checked()
        way = self._way(device)
        objective = self.objective.objective()
        if has_question:
            goal(limits, objective)
        with way.naming():
            return plan(
                way.task,
                limits,
                objective=objective,
                sensitivity=way.sensitivity,
                solver=way.solver,
                refine=way.refine,
                num_points=self._drawn.num_measured,
            )

    @property
    def _drawn(self) -> "Curve":
        """What is found beside the answer."""
        from mpq.workflows.forecast import Curve

        return Curve(self.curve.num_points, self.curve.measure, self.others.alternatives)

    def fitted(self, way: "Way", limits: list[str]) -> "Way":
        """The same with what is given up for ``--time``; that is told."""
        if self.effort.time is None:
            return way
        from mpq._support.durations import seconds_of
        from mpq.cli.talk import say
        from mpq.errors import InputError
        from mpq.workflows.within_time import within_time

        if way.recipe is not None:
            raise InputError(
                "--time gives up what a search does by default, and a recipe has settings of its "
                "own: leave one of --time and --recipe out"
            )
        found = within_time(
            way.task,
            seconds_of(self.effort.time),
            limits,
            objective=self.objective.objective(),
            sensitivity=way.sensitivity,
            solver=way.solver,
            refine=way.refine,
            num_points=self._drawn.num_measured,
        )
        for line in found.told:
            say(f"--time {self.effort.time}: {line}")
        return replace(way, task=found.task, sensitivity=found.sensitivity)

    def run_shard(self, shard: str) -> Path:
        """Does a share of the estimate; the file that it is in."""
        from mpq._support.shard import Shard
        from mpq.workflows.shards import estimate_shard

        Shard.parse(shard)
        device, limits = self._checked()
        way = self._way(device)
        with way.naming():
            return estimate_shard(way.task, shard, limits, sensitivity=way.sensitivity)

    def run(self) -> "tuple[SearchResult, Session]":
        """Runs the search; the session measures what the result predicts, without calibrating."""
        from mpq.errors import InputError
        from mpq.workflows.search import goal, searched

        device, limits = self._checked()
        objective = self.objective.objective()
        parsed, way = goal(limits, objective), self._way(device)
        if way.task.parts is not None and self.others.alternatives:
            raise InputError("--alternatives differ in whole layers: leave it or --split out")
        # Refused before it is planned what ``--time`` makes of it.
        way.method(objective)
        way = self.fitted(way, limits)
        # A tuning that is killed goes on from there, after the same search again.
        with way.naming():
            method, curve = way.method(objective), self._drawn
            found, session = searched(
                way.task, parsed, method, self.curve.resource, self.output, curve
            )
            return way.noted(found), session

    def _way(self, device: str | None) -> "Way":
        return self.how.way(self._task(device), self.asked.source.data)

    def _task(self, device: str | None) -> Task:
        """As asked; a recipe that makes its own examples needs the shape of held-out ones only."""
        asked = self.asked
        if asked.source.data is None and asked.eval_data and self.how.makes_examples:
            asked = replace(asked, source=replace(asked.source, data=asked.eval_data))
        return asked.task(device)

    def _checked(self) -> tuple[str | None, list[str]]:
        """Device and limits, after a look at the options that need neither network nor data."""
        from mpq.hardware_profiles import check_sum
        from mpq.report.sections import sections_of

        self.curve.check()
        self.others.check()
        sections_of(self.section or [])
        device, limits = self._device_and_limits()
        # a name that is wrong is cheap to find here, and minutes late after the estimate
        for resource in filter(None, (self.curve.resource, self.objective.minimize)):
            check_sum(resource, device is not None)
        return device, limits

    def _device_and_limits(self) -> tuple[str | None, list[str]]:
        """As given; the built-in network comes with both."""
        device, limits = self.asked.device, self.asked.limit or []
        if not self.asked.source.is_demo or limits:
            return device, limits
        own_device, own_limits = demo_goal(self.how.recipe)
        # The built-in limits would bound what is to be made small.
        return device or own_device, [] if self.objective.minimize else own_limits

    def in_full(self, words: Sequence[str]) -> list[str]:
        """The words of the command with the device and the limits that it took by itself."""
        device, limits = self._device_and_limits()
        own = [] if device is None or self.asked.device else ["--device", device]
        for limit in [] if self.asked.limit else limits:
            own += ["--limit", limit]
        return [*words, *own]

    def frontier(self, result: "SearchResult", session: "Session") -> "Frontier":
        """The frontier that is drawn beside a result."""
        from mpq.workflows.frontier import curve_of

        curve = self.curve
        return curve_of(result, session, curve.resource, curve.num_points, curve.measure)

    def alternatives(self, result: "SearchResult", session: "Session") -> "Frontier":
        """The best other assignments, measured."""
        others = self.others
        return session.measured(result.alternatives(others.alternatives, others.differing))

    def run_frontier(self) -> "tuple[SearchResult, Frontier]":
        """Finds the frontier; the search that it is of."""
        from mpq.errors import InputError
        from mpq.workflows.frontier import searched_frontier

        curve, (device, limits) = self.curve, self._checked()
        # Both would be without effect, which nobody expects of an option.
        if self.how.refine or self.objective.objective() is not None:
            raise InputError(
                "a frontier has the least loss at every amount of --resource: it takes neither "
                "--minimize nor --refine, which are for one assignment (mpq search)"
            )
        way = self.fitted(self._way(device), limits)
        return searched_frontier(way, curve.resource, limits, curve.num_points, curve.measure)


@dataclass(frozen=True, eq=False)
class TimingOptions:
    """How often what is run on this machine."""

    num_networks: o.NumNetworks = defaults.NUM_NETWORKS
    rounds: o.Rounds = defaults.ROUNDS
    max_interval: o.MaxInterval = defaults.MAX_INTERVAL
    clock: o.Clock = None


@dataclass(frozen=True, eq=False)
class ProfileOptions:
    """Which network is measured on this machine, and how."""

    source: SourceOptions = field(default_factory=SourceOptions)
    runtime: o.RuntimeName = defaults.RUNTIME
    precisions: o.Precisions = None
    batch_size: o.BatchSize = Workload.batch_size
    timing: TimingOptions = TimingOptions()
    patterns: PatternOptions = field(default_factory=PatternOptions)
    fold: o.Fold = Rules.fold
    ranges: RangeOptions = field(default_factory=RangeOptions)
    draws: DrawOptions = field(default_factory=DrawOptions)
    output: o.ProfileFile = Path("profile.json")

    def task(self) -> Task:
        """The task, with network and data loaded."""
        from mpq.cli.loading import load_data, load_model

        # First of all: that --data is missing is said before the model's code runs.
        spec, patterns = self.source.data_spec, self.patterns
        model = load_model(self.source.model, self.source.weights)
        return Task(
            model,
            load_data(spec, model, self.draws.seed),
            candidates=listed(self.precisions),
            rules=Rules(patterns.include or (), patterns.exclude or (), fold=self.fold),
            workload=Workload(self.batch_size),
            ranges=self.ranges.ranges(),
            seed=self.draws.seed,
            allow_randomness=self.draws.allow_randomness,
        )

    def run(self) -> "NetworkProfile":
        """Measures; finished rounds are kept beside the output, so that a crash costs little."""
        from mpq.workflows.profile import profile

        timing = self.timing
        return profile(
            self.task(),
            self.runtime,
            num_networks=timing.num_networks,
            rounds=timing.rounds,
            max_interval=timing.max_interval,
            clock=timing.clock,
            journal=self.journal,
            # --device is then given the file, and reports call the device alike.
            name=self.output.stem,
        )

    @property
    def kept(self) -> list[Kept]:
        """What an interruption leaves on disk."""
        return [Kept("finished rounds", self.journal)]

    @property
    def journal(self) -> Path:
        """Where finished rounds are."""
        # After the whole name: two profiles may differ by their suffix only.
        return self.output.with_name(f"{self.output.name}.journal")
