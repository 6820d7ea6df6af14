"""A task made ready: own copy of the network, split data, candidates and prices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self, final

from torch import nn

from mpq._support.cache import Cache
from mpq._support.ranks import Ranks
from mpq.backends.searched import check_searched
from mpq.backends.streamed import moment_memory
from mpq.errors import DataError, InfeasibleError
from mpq.hardware_profiles import NO_TARGET, Pricing
from mpq.hardware_profiles.linear import packed_bits
from mpq.network.blocks import blocks_of, without_caches
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.network.layer import Layer
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.running_steps import RunningSteps
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limit
from mpq.problem.problem import Problem
from mpq.quantization.numerics import OWN
from mpq.quantization.operand_formats import ALL
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.running_clusters import RunningClusters
from mpq.sensitivity import Estimation
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.queries.ask import ask
from mpq.solvers.queries.solve import solve
from mpq.workflows.cached_layers import OwnCandidates, warn_of_cache
from mpq.workflows.calibrated_ranges import CalibratedRanges, calibrated_ranges
from mpq.workflows.codes_cache import CodesCache
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.judges import Judges
from mpq.workflows.launch_hint import launch_hint
from mpq.workflows.own_codes import OwnCodes
from mpq.workflows.room_for_branches import with_room
from mpq.workflows.rounded_weights import RoundedWeights, rounded_weights
from mpq.workflows.ruled import all_ties, by_layer, check_fixed, fixed_ends
from mpq.workflows.rules import Rules
from mpq.workflows.score import Judge
from mpq.workflows.shared_measurements import CALIBRATION, HELD_OUT, SharedMeasurements
from mpq.workflows.shippable import Shippable
from mpq.workflows.step_plan import StepPlan, along_steps
from mpq.workflows.stepped_ranges import SteppedRanges
from mpq.workflows.target_prices import bits_there, constant_bytes, file_prices
from mpq.workflows.task import Task
from mpq.workflows.transformed import TransformedModel

HELD_OUT_SHARE = 0.25
"""Share of the calibration examples that is held out where no held-out data is given."""


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """All that a task's questions have in common, but the estimate.

    Args:
        task: What was asked; its model stays as it is.
        network: Own copy of the model, with its layers.
        calibration: Examples that estimators see and ranges are calibrated on.
        held_out: Examples that assignments are measured on.
        pricing: What the layers cost of every resource, at the task's workload.
        candidates: ``B`` precisions: the common candidates and those of single layers.
        fixed: Layers whose precision is given.
        allowed: Layers with candidates of their own.
        ties: Layers that share a precision.
        unshipped: Layers that stay as they came, as the task's target cannot hold them, and why.
        own_codes: Assignments that were rounded again, by themselves.
        transformed: The model after its transformations; ``None``: none was asked for.
        cache: Where what took long is kept on disk; ``None``: nowhere.
        unseen: Calibration examples that are kept for tuning; ``None``: it was not asked for.
        is_rehearsal: Whether it is only seen how long all takes, with weights to nearest.
    """

    task: Task
    network: Network
    calibration: Calibration
    held_out: Calibration
    pricing: Pricing
    candidates: tuple[Precision, ...]
    fixed: dict[str, Precision]
    allowed: dict[str, tuple[Precision, ...]]
    ties: tuple[tuple[str, ...], ...]
    unshipped: Mapping[str, str] = field(default_factory=dict)
    own_codes: OwnCodes = field(default_factory=OwnCodes)
    transformed: TransformedModel | None = None
    cache: Cache | None = None
    unseen: Calibration | None = None
    is_rehearsal: bool = False

    @classmethod
    def of(cls, task: Task) -> Self:
        """Finds the layers, resolves the task's rules to their names, and transforms the network.

        Raises:
            InputError: If the task does not fit the network; its subclasses say what.
            OutputError: If nothing can be kept where it should be.
        """
        return cls.untransformed(task).with_transforms()

    @classmethod
    def untransformed(cls, task: Task) -> Self:
        """The same without the task's transformations, which take longest.

        Raises:
            InputError: As ``of``.
        """
        cache = None if task.cache is None else Cache(task.cache)
        network = _found(task, task.model)
        if task.target is not None:
            task.target.check_network(task.model)
        # Only now: of a network that mixes rows no batch may be cut.
        data = along_steps(network, Calibration.of(task.calibration), task.steps)
        calibration, held_out = split_held_out(network, data, task.held_out)
        unseen = None
        if task.tuning is not None:
            calibration, unseen = calibration.split(task.tuning.share)
        prepared = cls._of(task, network, task.model, (calibration, held_out))
        if task.target is not None:
            # Last, since torch takes seconds to trace a network.
            searched = {layer.name for layer in network.layers} - prepared.unshipped.keys()
            check_searched(task.target, network, calibration, searched)
        return replace(prepared, cache=cache, unseen=unseen)

    def with_transforms(self) -> Self:
        """The network with the task's transformations, as far as they help."""
        if not (task := self.task).transforms:
            return self
        found = TransformedModel.of(task, self.network, self.calibration, partial(_found, task))
        return replace(
            self._of(task, found.network, found.model, (self.calibration, self.held_out)),
            transformed=found, cache=self.cache, unseen=self.unseen,
        )  # fmt: skip

    @classmethod
    def _of(
        cls, task: Task, network: Network, model: nn.Module, data: tuple[Calibration, Calibration]
    ) -> Self:
        """Of a network and its model, which may be transformed."""
        rules = task.rules
        own = OwnCandidates.of(
            network.layers,
            task,
            fixed_ends(network, rules) | by_layer(network, rules.fixed, "--fix"),
            by_layer(network, rules.allowed, "--allow"),
        )
        fixed, allowed = own.fixed, own.allowed
        check_fixed(fixed, allowed)
        allowed = with_room(network.layers, task.precisions, allowed, fixed)
        ties, target, unshipped = all_ties(network, rules), task.target, dict[str, str]()
        if target is not None:
            wanted = {x.name: allowed.get(x.name, task.precisions) for x in network.layers}
            modules = dict(model.named_modules(remove_duplicate=False))
            found = Shippable.of(target, network.layers, ties, wanted, fixed, modules)
            allowed, unshipped, ties = dict(found.allowed), dict(found.unshipped), found.ties
        # A table has the same columns for all layers, also those that a single one may take.
        columns = [p for ps in (tuple(fixed.values()), *allowed.values()) for p in ps]
        pricing = Pricing(
            _stored(network.layers, rules),
            task.profile,
            task.workload,
            network.lifetimes,
            network.num_unquantized,
            network.constant_bytes if target is None else constant_bytes(network, target),
            packed_bits if target is None else bits_there(model, target),
            NO_TARGET if target is None else file_prices(model, network, target),
            task.kv_cache,
        )
        candidates = tuple(dict.fromkeys((*task.precisions, *columns)))
        return cls(task, network, *data, pricing, candidates, fixed, allowed, ties, unshipped)

    @cached_property
    def quantizer(self) -> Quantizer:
        """With calibrated ranges, and weights as the task's rounding has them."""
        return replace(self.nearest, stored=self.rounded.stored)

    @cached_property
    def ranks(self) -> Ranks | None:
        """The processes that do this task together; ``None``: this one alone."""
        workers = self.task.built_workers
        return Ranks.joined() if workers is not None and workers.kind == "torchrun" else None

    @property
    def kept_codes(self) -> CodesCache | None:
        """Where codes are kept on disk; ``None``: nowhere."""
        return None if self.cache is None else CodesCache(self.cache)

    @cached_property
    def rounded(self) -> RoundedWeights:
        """What the task's rounding makes of all weights; nothing where that is to nearest."""
        on = Estimation(
            self.network, self.calibration, self.nearest, self.candidates, ranks=self.ranks
        )
        rounding, seed = self.task.weight_rounding, self.task.seed
        return rounded_weights(on, rounding, seed, self.kept_codes, self.most_moment_bytes)

    @property
    def most_moment_bytes(self) -> int | None:
        """That second moments of some layers may take; ``None``: they are all there at once."""
        if not self.task.streamed:
            return None
        formats = {p.weight for p in self.candidates}
        return moment_memory(self.task.model, self.task.memory_bytes, formats)

    @cached_property
    def asked(self) -> Estimation:
        """What an estimator is asked."""
        on = Estimation(
            self.network, self.calibration, self.quantizer, self.candidates, ranks=self.ranks,
            split=self.task.parts_of_weights,
        )  # fmt: skip
        return self.judges.asked(on)

    @cached_property
    def judges(self) -> Judges:
        """Who is asked for scores."""
        score, model = self.task.own_score, share_parameters(self.task.model)
        data = self.calibration, self.held_out
        return Judges(score, model, self.network, lambda: self.nearest, *data, self.cache)

    @cached_property
    def calibrated(self) -> CalibratedRanges:
        """Takes a forward pass where an activation's range is static; of ``loss`` more."""
        # When it is first asked for: what a limit refuses need not wait for a pass over the data.
        found = calibrated_ranges(
            self.network, self.calibration, self.candidates, self.task.ranges.activation,
            self.task.seed, self.ranks,
        )  # fmt: skip
        plan, steps = self.step_plan, self.task.steps
        if plan is None or steps is None:
            return found
        by = SteppedRanges(self.network, plan, found.methods, self.task.seed, self.ranks)
        return by.beside(found, self.calibration, steps.trial)

    @cached_property
    def step_plan(self) -> StepPlan | None:
        """Clusters of steps; ``None``: the network has no steps, or one cluster of them."""
        steps = self.task.steps
        if steps is None or steps.clusters == 1:
            return None
        return StepPlan.of(self.network, self.calibration, self.held_out, steps)

    @cached_property
    def nearest(self) -> Quantizer:
        """With calibrated ranges, and all weights to nearest."""
        target = self.task.target
        numerics = OWN if target is None else target.arithmetic
        shared = self.network.shared_weights
        running, plan, steps = self.network.steps, self.step_plan, None
        if running is not None and plan is not None:
            steps = RunningClusters(running, plan.record.clusters)
        return Quantizer(
            self.calibrated.ranges, self.task.ranges.weight, numerics, shared=shared, steps=steps,
            is_rehearsal=self.is_rehearsal,
        )  # fmt: skip

    @cached_property
    def on_calibration(self) -> Evaluator:
        """Measures on the calibration examples."""
        judge = self.judges.on_calibration
        return self._evaluator(self.calibration, CALIBRATION, judge, is_repeatable=True)

    @cached_property
    def on_held_out(self) -> Evaluator:
        """Measures on the held-out examples."""
        # Of measured searches on calibration examples the solver keeps what it measures, if asked.
        found = self._evaluator(self.held_out, HELD_OUT, self.judges.on_held_out)
        return replace(found, cache=self.cache)

    def _evaluator(
        self, data: Calibration, name: str, judge: Judge | None, is_repeatable: bool = False
    ) -> Evaluator:
        # Not our network, whose folded BatchNorm already differs by rounding; and without what
        # torch.compile makes of the model, as quantized networks run without it, too.
        plain = share_parameters(self.task.model)
        metric, seed = self.network.metric, self.task.allow_randomness
        reference = Reference(plain, data, metric, seed, is_repeatable)
        ranks = self.ranks if seed is None else None  # what is drawn depends on all batches before
        shared = SharedMeasurements.of(ranks, name, reference.num_batches)
        return Evaluator(
            self.network, self.quantizer, reference, self.own_codes, shared=shared, judge=judge,
            examples=name,
        )  # fmt: skip

    def constraints(self, limits: Sequence[Limit]) -> Constraints:
        """What an assignment has to keep; what cannot be met is refused before the estimate.

        Raises:
            InfeasibleError: If no assignment meets the limits.
        """
        warn_of_cache(self.pricing, [limit.resource for limit in limits])
        names = tuple(layer.name for layer in self.network.layers)
        budgets = (self.pricing.budget(limit, self.candidates, self.ties) for limit in limits)
        # Said for every layer, since the columns hold what other layers may take as well.
        candidates = {**dict.fromkeys(names, self.task.precisions), **self.allowed}
        constraints = Constraints(tuple(budgets), self.ties, self.fixed, candidates)
        # an additive problem with a loss of 0 is solved in milliseconds, whatever the real loss is
        any_loss = self.indifferent(constraints)
        try:
            solve(additive_solver(any_loss), any_loss)
        except InfeasibleError as error:
            hints = launch_hint(self.pricing, constraints) + self._constant_hint(any_loss)
            hints += self._unshipped_hint()
            raise InfeasibleError(f"{error}{hints}") from error
        return constraints

    def _constant_hint(self, infeasible: Problem) -> str:
        """Names what takes a budget's bytes at any precision, where that is much of the limit."""
        shortfalls = ask(additive_solver(infeasible), infeasible).shortfalls
        names = self.network.coverage.largest_outside if self.network.coverage else ""
        if not names or not any(x.is_constant_notable for x in shortfalls):
            return ""
        return f". Not in the layers, the largest first: {names}"

    def _unshipped_hint(self) -> str:
        """Names a layer that takes its bytes as it came, since the target does not hold it."""
        if not self.unshipped:
            return ""
        (name, why), target = next(iter(self.unshipped.items())), self.task.target
        assert target is not None
        return (
            f". {len(self.unshipped)} of {len(self.network.layers)} layers stay as they came, as "
            f"{target.name} holds none of their candidates; the first is {name!r}: {why}"
        )

    def indifferent(self, constraints: Constraints) -> Problem:
        """The problem that only has constraints: every assignment loses nothing."""
        names = [layer.name for layer in self.network.layers]
        return Problem.of_any(constraints, names, self.candidates)


def _found(task: Task, model: nn.Module) -> Network:
    """The layers of the task's model, or of what a transformation made of it."""
    rules, cache = task.rules, task.kv_cache

    def found(data: Calibration) -> Network:
        return Network.of(
            model, data, rules.include, rules.exclude, rules.fold, task.output_metric,
            task.allow_randomness, cache and cache.layers, task.activations == ALL,
        )  # fmt: skip

    network = halved("finding layers", Calibration.of(task.calibration), found)
    if task.steps is not None:
        running = RunningSteps(task.steps.argument)
        running.follow(network.module)
        network = replace(network, steps=running)
    if not task.streamed:
        return network
    without_caches(network.module)
    return replace(network, blocks=blocks_of(network.module, task.blocks))


def _stored(layers: Sequence[Layer], rules: Rules) -> tuple[Layer, ...]:
    """The layers; without ties each stores its own weight, as precisions of one may differ."""
    if rules.find_ties:
        return tuple(layers)
    return tuple(replace(layer, weight_of=None) for layer in layers)


def split_held_out(
    network: Network, data: Calibration, held_out: Any
) -> tuple[Calibration, Calibration]:
    """Calibration and held-out examples.

    Raises:
        DataError: If held-out examples of their own are none, or there are too few to split.
    """
    data = network.examples(data)
    if held_out is None:
        # By position: data is read anew for every pass, and a drawn split would have to be kept.
        return data.split(HELD_OUT_SHARE)
    own = network.examples(Calibration.of(held_out))
    # Before all that takes long: they are read when there is an answer to measure.
    try:
        own.first()
    except DataError as error:
        raise DataError(f"held-out data: {error}") from error
    return data, own
