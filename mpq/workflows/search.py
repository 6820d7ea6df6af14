"""The main job, told once: model + data + device + limits -> assignment."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mpq._support.progress import showing_progress
from mpq.errors import InputError
from mpq.hardware_profiles import Phase, Profile
from mpq.network.metric import OutputMetric
from mpq.problem.constraints import Constraints
from mpq.problem.limits import parse_limits
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RangeMethod
from mpq.sensitivity import ESTIMATORS, SensitivityEstimator
from mpq.solvers import SOLVERS, Solver
from mpq.solvers.queries.solve import solve
from mpq.workflows.objective import Objective
from mpq.workflows.refine import Refinement, refinable_estimator
from mpq.workflows.refine import refine as refine_solution
from mpq.workflows.result import Origin, SearchResult
from mpq.workflows.setup import Prepared


def search(
    model: nn.Module,
    calibration: Any,
    *,
    limits: Sequence[str] = (),
    minimize: str | None = None,
    max_loss: float | None = None,
    max_measured_loss: float | None = None,
    max_accuracy_drop: float | None = None,
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
    phase: Phase | None = None,
    tokens: int | None = None,
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
        minimize: A resource to make as small as possible, within the limits, instead of losing
            least; with one of the next three. The result is what loses least at that cost.
        max_loss: Largest predicted loss, in the estimate's unit; proved where it is additive.
        max_measured_loss: Largest loss measured on the held-out examples, in the metric's unit:
            bisection over 64 points of the frontier.
        max_accuracy_drop: The same with the accuracy: 0.01 is one point below the original.
        device: A name of ``mpq.device_names()``, a path to a profile's JSON, or a profile; latency
            and energy need one.
        precisions: Candidates; default: what the device was measured at; of an estimated one, those
            of ``DEFAULT_PRECISIONS`` that it runs.
        sensitivity: A name of ``mpq.ESTIMATORS`` with options, such as ``sketch:num_probes=4``, or
            an estimator.
        solver: A name of ``mpq.SOLVERS`` with options, or a solver. ``ilp`` takes an estimate's
            additive table only; ``auto`` also how errors of different layers add up.
        refine: At most so many rounds in which the estimate is made anew at the assignment that
            was found, and solved again, while the loss measured on calibration examples falls. The
            result is refined, the points of its frontier are not.
        held_out: Examples to measure on, as ``calibration``; default: the last quarter of the
            calibration examples, which are then not used to calibrate.
        include: Globs of layer names; only matching layers are quantized. Empty: all.
        exclude: Globs of layers that stay as they are and are in no budget.
        fix: Glob to the precision of all layers that it matches.
        allow: Glob to the candidates of all layers that it matches.
        tie: Globs; all layers that one matches share a precision.
        find_ties: Whether layers that read one tensor share a precision.
        fold: Whether BatchNorm is folded into the convolution before it.
        metric: How outputs are compared: a name of ``mpq.network.metric.METRICS``, or a metric.
        batch_size: Examples at once, for latency and energy.
        phase: For what resources are priced: ``prefill`` (a prompt of ``tokens``), ``decode`` (one
            new token), or the examples as they are.
        tokens: Of the prompt; default: as many as an example has.
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
    parsed = parse_limits(limits)
    objective = Objective.of(minimize, max_loss, max_measured_loss, max_accuracy_drop)
    if not parsed and objective is None:
        raise InputError(
            "give at least one limit, such as latency=0.6x:w8a8 or weight_bytes=300KiB"
        )
    is_measured = chosen_solver.is_measuring
    chosen_solver.check()
    if objective is not None and is_measured:
        raise InputError("minimize needs a predicted loss; is_measured=true searches without one")
    if objective is not None and refine:
        raise InputError("refine lowers the loss at given limits; it does not go with minimize")
    if refine:
        refinable_estimator(estimator, refine)
        if is_measured:
            raise InputError("refine needs a predicted loss; is_measured=true searches without one")
    with showing_progress(progress):
        prepared = Prepared.of(
            model, calibration, device=device, precisions=precisions, held_out=held_out,
            include=include, exclude=exclude, fix=fix, allow=allow, tie=tie, find_ties=find_ties,
            fold=fold, metric=metric, batch_size=batch_size, phase=phase, tokens=tokens,
            weight_range=weight_range, activation_range=activation_range,
        )  # fmt: skip
        # what cannot be met or minimized is refused before the estimate, which takes longest
        constraints = prepared.constraints(parsed)
        table = (
            prepared.pricing.table(objective.resource, prepared.candidates) if objective else None
        )
        problem = estimated(prepared, constraints, estimator, chosen_solver)
        if chosen_solver.is_measuring:
            losses = prepared.on_calibration.losses_of(prepared.candidates)
            chosen_solver = chosen_solver.bind(losses)
        if objective is None or table is None:
            solution = solve(chosen_solver, problem)
        else:
            problem, solution = objective.solve(problem, table, chosen_solver, prepared.on_held_out)
        rounds: tuple[Refinement, ...] = ()
        if refine:
            solution, rounds = refine_solution(
                estimator, chosen_solver, problem, solution,
                prepared.on_calibration, prepared.tuning, refine,
            )  # fmt: skip
        profile = prepared.pricing.profile
        origin = Origin(estimator.name, profile.name if profile else None, seed, rounds)
        return SearchResult.measure(
            problem, solution, chosen_solver, prepared.pricing, prepared.on_held_out, origin
        )


def estimated(
    prepared: Prepared, constraints: Constraints, estimator: SensitivityEstimator, solver: Solver
) -> Problem:
    """The problem with its loss, as far as the solver can take it."""
    found = estimator.estimate(
        prepared.network, prepared.tuning, prepared.quantizer, prepared.candidates
    )
    interactions = found.interactions if solver.takes_interactions else None
    return Problem(found.table, constraints, interactions)
