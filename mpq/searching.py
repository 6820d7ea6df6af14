"""The main job, told once: model + data + device + limits -> assignment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from mpq.budget import Budget, Limit, parse_limits
from mpq.calibration import Calibration
from mpq.cost_table import CostTable
from mpq.errors import InfeasibleError, InputError, SolverError, UnknownNameError
from mpq.evaluation import Reference
from mpq.hardware_profiles import Pricing, Profile, load_device
from mpq.layer import matching, merge_ties
from mpq.metric import METRICS, OutputMetric
from mpq.model import Network
from mpq.precision import Precision
from mpq.problem import Problem
from mpq.progress import showing_progress
from mpq.quantization import ActivationRanges, Quantizer
from mpq.refining import Refinement, refinable_estimator
from mpq.refining import refine as refine_solution
from mpq.result import Origin, SearchResult
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.solution import Solution, Status
from mpq.solvers import SOLVERS, Evolutionary, IntegerLinearProgram, Solver
from mpq.testbed import Testbed
from mpq.value_range import RANGE_METHODS, RangeMethod

DEFAULT_PRECISIONS = ("w2a8", "w3a8", "w4a4", "w4a8", "w5a8", "w6a8", "w8a8")
"""Candidates where none are given; those that the device cannot run are left out."""
HELD_OUT_SHARE = 0.25
"""Share of the calibration examples that is held out where no held-out data is given."""


def search(
    model: nn.Module,
    calibration: Any,
    *,
    limits: Sequence[str],
    device: str | Profile | None = None,
    precisions: Sequence[str | Precision] | None = None,
    sensitivity: str | SensitivityEstimator = "sketch",
    solver: str | Solver = "auto",
    refine: int = 0,
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
    weight_range: RangeMethod = "mse",
    activation_range: RangeMethod = "mse",
    seed: int = 0,
    progress: bool = False,
) -> SearchResult:
    """Finds the precision of every layer that loses least within the limits.

    The model is left as found: weights, gradients, mode, hooks, requires_grad, random state.

    Args:
        model: In evaluation mode, on any device.
        calibration: A function or a list that yields batches; see ``Calibration``.
        limits: Such as ``latency=2.5ms``, ``weight_bytes=300KiB``, ``latency=0.6x:w8a8``; see
            ``Limit.parse``. Resources: ``mpq.hardware_profiles.RESOURCES``.
        device: A name of ``mpq.device_names()``, a path to a profile's JSON, or a profile; latency
            and energy need one.
        precisions: Candidates; default: those of ``DEFAULT_PRECISIONS`` that the device runs.
        sensitivity: A name of ``mpq.ESTIMATORS`` with options, such as ``sketch:num_probes=4``, or
            an estimator.
        solver: A name of ``mpq.SOLVERS`` with options, or a solver. ``ilp`` takes an estimate's
            additive table only; ``auto`` also how errors of different layers add up.
        refine: At most so many rounds in which the estimate is made anew at the assignment that
            was found, and solved again, while the loss measured on calibration examples falls.
        held_out: Examples to measure on, as ``calibration``; default: the last quarter of the
            calibration examples, which are then not used to calibrate.
        include: Globs of layer names; only matching layers are quantized. Empty: all.
        exclude: Globs of layers that stay as they are and are in no budget.
        fix: Glob to the precision of all layers that it matches.
        allow: Glob to the candidates of all layers that it matches.
        tie: Globs; all layers that one matches share a precision.
        find_ties: Whether layers that read one tensor share a precision.
        fold: Whether BatchNorm is folded into the convolution before it.
        metric: How outputs are compared: a name of ``mpq.metric.METRICS``, or a metric.
        batch_size: Examples at once, for latency and energy.
        weight_range: How weights' ranges are chosen: ``minmax``, ``percentile``, ``mse``.
        activation_range: How activations' ranges are chosen.
        seed: Of estimator and solver, where they draw.
        progress: Whether bars are shown on standard error.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
        InfeasibleError: If no assignment meets the limits: by how much, and which one binds.
        SolverError: If the solver fails or finds nothing.
    """
    estimator = ESTIMATORS.build(sensitivity, seed) if isinstance(sensitivity, str) else sensitivity
    chosen_solver = SOLVERS.build(solver, seed) if isinstance(solver, str) else solver
    profile = load_device(device) if isinstance(device, str) else device
    parsed = parse_limits(limits)
    if not parsed:
        raise InputError(
            "give at least one limit, such as latency=0.6x:w8a8 or weight_bytes=300KiB"
        )
    chosen_metric = METRICS.build(metric) if isinstance(metric, str) else metric
    _check_ranges(weight_range, activation_range)
    if refine:
        refinable_estimator(estimator, refine)
    with showing_progress(progress):
        data = Calibration.of(calibration)
        tuning, testing = data.split(HELD_OUT_SHARE) if held_out is None else (data, held_out)
        network = Network.of(model, tuning, include, exclude, fold, chosen_metric)
        fixed, allowed = _by_layer(network, fix or {}, allow or {})
        common = candidates(precisions, profile)
        own = (p for ps in (tuple(fixed.values()), *allowed.values()) for p in ps)
        choices = tuple(dict.fromkeys((*common, *own)))
        pricing = Pricing(network.layers, profile, batch_size)
        ties = [*(network.ties if find_ties else ()), *_tied(network, tie)]
        question = _question(pricing, parsed, choices, ties, common, fixed, allowed)
        ranges = ActivationRanges.calibrate(network, tuning, choices, activation_range)
        quantizer = Quantizer(ranges, weight_range)
        loss = estimator.estimate(network, tuning, quantizer, choices)
        interactions = loss.interactions if chosen_solver.takes_interactions else None
        problem = replace(question, loss=loss.table, interactions=interactions)
        if isinstance(chosen_solver, Evolutionary) and chosen_solver.is_measured:
            tried = Testbed(network, quantizer, Reference(model, tuning, network.metric))
            chosen_solver = replace(chosen_solver, objective=tried.loss_of(choices))
        solution = _solve(chosen_solver, problem)
        rounds: tuple[Refinement, ...] = ()
        if refine:
            tried = Testbed(network, quantizer, Reference(model, tuning, network.metric))
            solution, rounds = refine_solution(
                estimator, chosen_solver, problem, solution, tried, tuning, refine
            )
        testbed = Testbed(
            network, quantizer, Reference(model, Calibration.of(testing), network.metric)
        )
        origin = Origin(estimator.name, profile.name if profile else None, seed, rounds)
        return SearchResult.measure(problem, solution, chosen_solver, pricing, testbed, origin)


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

    Raises:
        InputError: If the device can run none of the given ones.
    """
    given = dict.fromkeys(map(_precision, DEFAULT_PRECISIONS if precisions is None else precisions))
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


def _question(
    pricing: Pricing,
    limits: Sequence[Limit],
    choices: Sequence[Precision],
    ties: Sequence[Sequence[str]],
    common: Sequence[Precision],
    fixed: Mapping[str, Precision],
    allowed: Mapping[str, tuple[Precision, ...]],
) -> Problem:
    """The problem before its loss is known; what cannot be met is refused before the estimate."""
    names = tuple(layer.name for layer in pricing.layers)
    unknown = np.zeros((len(names), len(choices)))
    question = Problem(
        CostTable("unknown", "nats", names, tuple(choices), unknown),
        tuple(_budget(pricing, limit, choices) for limit in limits),
        merge_ties(ties, names),
        fixed,
        {**{name: tuple(common) for name in names}, **allowed},
    )
    try:
        _solve(IntegerLinearProgram(), question)
    except InfeasibleError as error:
        raise InfeasibleError(f"{error}{_launch_hint(pricing, question)}") from error
    return question


def _launch_hint(pricing: Pricing, question: Problem) -> str:
    """Says so where no precision helps because starting the layers takes most of a latency."""
    limits = {budget.table.name: budget.limit for budget in question.budgets}
    if pricing.profile is None or "latency" not in limits:
        return ""
    calls = sum(layer.calls for layer in pricing.layers)
    launches_s = calls * pricing.profile.launch_overhead_s.value
    if launches_s < 0.5 * limits["latency"]:
        return ""
    return (
        f". Starting {calls} layers takes {launches_s:.3g} seconds at any precision; "
        "a larger batch size hides it"
    )


def _budget(pricing: Pricing, limit: Limit, choices: Sequence[Precision]) -> Budget:
    """A budget over the choices; its limit may refer to a precision that is no choice."""
    reference = () if limit.reference is None else (limit.reference,)
    wide = pricing.table(limit.resource, tuple(dict.fromkeys((*choices, *reference))))
    return Budget(wide.select(choices), limit.resolve(wide))


def _solve(solver: Solver, problem: Problem) -> Solution:
    solution = solver.solve(problem)
    if solution.status is Status.INFEASIBLE:
        reasons = "; ".join(map(str, solution.shortfalls)) or "no budget can be blamed"
        raise InfeasibleError(f"{solution.status.value}. {reasons}")
    if solution.choice is None:
        raise SolverError(f"{solution.solver}: {solution.status.value}")
    return solution
