"""A network, its data, candidates and prices: what every question about it has in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, final

from torch import nn

from mpq.errors import InfeasibleError, InputError, UnknownNameError
from mpq.hardware_profiles import Phase, Pricing, Profile, Roofline, Workload, load_device
from mpq.network.examples import Calibration
from mpq.network.layer import matching, merge_ties
from mpq.network.metric import METRICS, OutputMetric
from mpq.network.network import Network
from mpq.problem.constraints import Constraints
from mpq.problem.limits import Limit
from mpq.problem.problem import Problem
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS, RangeMethod
from mpq.solvers.additive.default import additive_solver
from mpq.solvers.queries.solve import solve
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

DEFAULT_PRECISIONS = ("w2a8", "w3a8", "w4a4", "w4a8", "w5a8", "w6a8", "w8a8")
"""Candidates where neither they nor measurements of the device are given; those that the device
cannot run are left out."""
HELD_OUT_SHARE = 0.25
"""Share of the calibration examples that is held out where no held-out data is given."""


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """All but the estimate; arguments of ``of`` are those of ``mpq.search``.

    Args:
        model: The user's.
        network: Own copy, with its layers.
        tuning: Calibration examples.
        testing: Held-out examples.
        pricing: Costs of the layers.
        candidates: ``B`` precisions: the common candidates and those of single layers.
        common: Candidates of a layer that has none of its own.
        fixed: Layers whose precision is given.
        allowed: Layers with candidates of their own.
        ties: Layers that share a precision.
        weight_range: How weights' ranges are chosen.
        activation_range: How activations' ranges are chosen.
    """

    model: nn.Module
    network: Network
    tuning: Calibration
    testing: Calibration
    pricing: Pricing
    candidates: tuple[Precision, ...]
    common: tuple[Precision, ...]
    fixed: Mapping[str, Precision]
    allowed: Mapping[str, tuple[Precision, ...]]
    ties: tuple[tuple[str, ...], ...]
    weight_range: RangeMethod
    activation_range: RangeMethod

    @classmethod
    def of(
        cls,
        model: nn.Module,
        calibration: Any,
        *,
        device: str | Profile | None = None,
        precisions: Sequence[str | Precision] | None = None,
        held_out: Any = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        fix: Mapping[str, str | Precision] | None = None,
        allow: Mapping[str, Sequence[str | Precision]] | None = None,
        tie: Sequence[str] = (),
        find_ties: bool = True,
        fold: bool = True,
        metric: str | OutputMetric = "kl",
        batch_size: int = 1,
        phase: Phase | None = None,
        tokens: int | None = None,
        weight_range: RangeMethod = "mse",
        activation_range: RangeMethod = "mse",
    ) -> Self:
        """See ``mpq.search``."""
        profile = load_device(device) if isinstance(device, str) else device
        chosen_metric = METRICS.build(metric) if isinstance(metric, str) else metric
        _check_ranges(weight_range, activation_range)
        data = Calibration.of(calibration)
        tuning, testing = data.split(HELD_OUT_SHARE) if held_out is None else (data, held_out)
        network = Network.of(model, tuning, include, exclude, fold, chosen_metric)
        fixed, allowed = _by_layer(network, fix or {}, allow or {})
        common = candidates(precisions, profile)
        own = (p for ps in (tuple(fixed.values()), *allowed.values()) for p in ps)
        ties = [*(network.ties if find_ties else ()), *_tied(network, tie)]
        names = tuple(layer.name for layer in network.layers)
        return cls(
            model, network, tuning, Calibration.of(testing),
            Pricing(
                network.layers, profile, Workload(batch_size, phase, tokens),
                network.lifetimes, network.num_unquantized,
            ),
            tuple(dict.fromkeys((*common, *own))),
            common, fixed, allowed, merge_ties(ties, names), weight_range, activation_range,
        )  # fmt: skip

    @cached_property
    def quantizer(self) -> Quantizer:
        """With calibrated ranges; takes a forward pass where an activation's range is static."""
        ranges = ActivationRanges.calibrate(
            self.network, self.tuning, self.candidates, self.activation_range
        )
        return Quantizer(ranges, self.weight_range)

    @cached_property
    def on_calibration(self) -> Evaluator:
        """Measures on the calibration examples."""
        return self._testbed(self.tuning)

    @cached_property
    def on_held_out(self) -> Evaluator:
        """Measures on the held-out examples."""
        return self._testbed(self.testing)

    def _testbed(self, data: Calibration) -> Evaluator:
        reference = Reference(self.model, data, self.network.metric)
        return Evaluator(self.network, self.quantizer, reference)

    def constraints(self, limits: Sequence[Limit]) -> Constraints:
        """What an assignment has to keep; what cannot be met is refused before the estimate.

        Raises:
            InfeasibleError: If no assignment meets the limits.
        """
        names = tuple(layer.name for layer in self.network.layers)
        budgets = (self.pricing.budget(limit, self.candidates, self.ties) for limit in limits)
        candidates = {**dict.fromkeys(names, self.common), **self.allowed}
        constraints = Constraints(tuple(budgets), self.ties, self.fixed, candidates)
        any_loss = self.indifferent(constraints)
        try:
            solve(additive_solver(any_loss), any_loss)
        except InfeasibleError as error:
            raise InfeasibleError(f"{error}{_launch_hint(self.pricing, constraints)}") from error
        return constraints

    def indifferent(self, constraints: Constraints) -> Problem:
        """The problem that only has constraints: every assignment loses nothing."""
        names = [layer.name for layer in self.network.layers]
        return Problem.of_any(constraints, names, self.candidates)


def _check_ranges(*methods: str) -> None:
    for method in methods:
        if method not in RANGE_METHODS:
            raise UnknownNameError("range method", method, RANGE_METHODS)


def _precision(value: str | Precision) -> Precision:
    return value if isinstance(value, Precision) else Precision.parse(value)


def candidates(
    precisions: Sequence[str | Precision] | None, profile: Profile | None
) -> tuple[Precision, ...]:
    """The candidates of every layer that has none of its own.

    Where none are given: what the profile was measured at, else ``DEFAULT_PRECISIONS``.

    Raises:
        InputError: If the device can run none of the given ones.
    """
    default = (profile.precisions if profile else None) or DEFAULT_PRECISIONS
    given = dict.fromkeys(map(_precision, default if precisions is None else precisions))
    runnable = tuple(p for p in given if profile is None or profile.runs_somewhere(p))
    if profile is not None and (not runnable or (precisions and len(runnable) < len(given))):
        unable = [str(p) for p in given if p not in runnable]
        raise InputError(f"{profile.name} runs no layer at {', '.join(unable)}")
    return runnable


def _tied(network: Network, globs: Sequence[str]) -> list[tuple[str, ...]]:
    names = [layer.name for layer in network.layers]
    return [matching(names, glob, "--tie") for glob in globs]


def _by_layer(
    network: Network,
    fix: Mapping[str, str | Precision],
    allow: Mapping[str, Sequence[str | Precision]],
) -> tuple[dict[str, Precision], dict[str, tuple[Precision, ...]]]:
    """Globs resolved to layer names; a later glob overrides an earlier one."""
    names = [layer.name for layer in network.layers]
    fixed = {
        name: _precision(precision)
        for glob, precision in fix.items()
        for name in matching(names, glob, "--fix")
    }
    allowed = {
        name: tuple(map(_precision, precisions))
        for glob, precisions in allow.items()
        for name in matching(names, glob, "--allow")
    }
    return fixed, allowed


def _launch_hint(pricing: Pricing, constraints: Constraints) -> str:
    """Says so where no precision helps because starting the layers takes most of a latency."""
    limits = {budget.resource: budget.limit for budget in constraints.budgets}
    if not isinstance(pricing.profile, Roofline) or "latency" not in limits:
        return ""
    calls = sum(layer.calls for layer in pricing.layers)
    launches_s = calls * pricing.profile.launch_overhead_s.value
    if launches_s < 0.5 * limits["latency"]:
        return ""
    return (
        f". Starting {calls} layers takes {launches_s:.3g} seconds at any precision; "
        "a larger batch size hides it"
    )
