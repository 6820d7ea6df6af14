"""The main job, told once: model + data + device + limits -> assignment."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from mpq._support.events import Callback, listening
from mpq._support.phases import phase, recorded_phases
from mpq._support.ray_workers import task_workers
from mpq.errors import InputError
from mpq.network.mapped import streaming
from mpq.network.randomness import random_state_kept
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import Limit, Limits, parse_limits
from mpq.problem.problem import Problem
from mpq.recipes import Recipe
from mpq.report.safeguard import INTEGERS, PRICES, UNSEEN, AnswerCheck, Safeguard
from mpq.sensitivity import ESTIMATORS, Estimation, Sensitivity, SensitivityEstimator
from mpq.sensitivity.in_memory import in_memory
from mpq.sensitivity.spot_check import spot_check
from mpq.solvers import Solver
from mpq.workflows.asked import Asked
from mpq.workflows.bias_correction import with_corrected_biases
from mpq.workflows.cached_layers import check_prices_caches
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.finish import finished
from mpq.workflows.follow import Way, follow
from mpq.workflows.forecast import (
    CODES,
    COMPARING,
    ESTIMATE,
    MEASURING,
    RANGES,
    SOLVING,
    Curve,
    tell_forecast,
)
from mpq.workflows.heads_inside import heads_of
from mpq.workflows.inside import answer_in_parts, check_split
from mpq.workflows.kept_estimates import kept_estimate
from mpq.workflows.made_here import made_here
from mpq.workflows.measured_share import MeasuredShare
from mpq.workflows.method import Method
from mpq.workflows.never_worse import never_worse
from mpq.workflows.objective import Objective
from mpq.workflows.other_answers import best_answer
from mpq.workflows.outcome import announced
from mpq.workflows.prices_by_workers import ask_ahead
from mpq.workflows.result import SearchResult
from mpq.workflows.session import Session
from mpq.workflows.setup import Prepared
from mpq.workflows.streamable import check_streamed
from mpq.workflows.task import Task, check_task
from mpq.workflows.tuning import Examples, Tuner


def search(
    task: Task,
    limits: Limits = (),
    *,
    objective: Objective | None = None,
    sensitivity: str | SensitivityEstimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    refine: int = 0,
    callbacks: Sequence[Callback] = (),
    safeguard: bool = True,
    recipe: str | Recipe | None = None,
    keep: Collection[str] = (),
) -> SearchResult:
    """Finds the assignment with the least loss within the limits.

    The solver's answer is refined, set beside others that the estimate may be wrong about
    (``best_answer``), then rounded again and its ranges chosen again where the task
    asks for it (``sequential_rounding``, ``recalibrate``), then compared with uniform precisions,
    and measured; last of all its biases are corrected (``bias_correction``), and it is tuned
    (``tune``), where the task asks for that.

    Args:
        task: The network, its data, and what its layers may become.
        limits: ``{"latency": 2.5e-3, "weight_bytes": "0.6x:w8a8"}`` (a number is in seconds, bytes,
            joules or bits), or texts such as ``latency=2.5ms``; see ``Limit.parse``. Resources:
            ``mpq.hardware_profiles.RESOURCES``.
        objective: A resource to make as small as possible, within the limits, instead of the
            loss. The result has the least loss at that cost.
        sensitivity: A name of ``mpq.ESTIMATORS`` with options, such as ``sketch:num_probes=4``, or
            an estimator.
        solver: A name of ``mpq.SOLVERS`` with options, or a solver. ``ilp`` takes an estimate's
            additive table only; ``auto`` also how errors of different layers add up.
        refine: At most so many rounds in which the estimate is made anew at the assignment that
            was found, and solved again, while the loss measured on calibration examples falls. The
            result is refined, the points of its frontier are not.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.
        safeguard: Whether an answer that the estimate says is worse, and that loses less on
            held-out examples, takes the place of the solver's (docs/sensitivity.md).
        recipe: A published system, of ``mpq recipes``, whose settings are taken. What ``task`` and
            this call have otherwise than by default stands, and the result names it.
        keep: Settings that stand though they are as by default, such as ``rounding``.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
        InfeasibleError: If no assignment meets the limits: by how much, and which one binds.
        SolverError: If the solver fails or finds nothing.
    """
    check_task(task, "search")
    parsed = goal(limits, objective)
    with listening(callbacks), recorded_phases() as phases:
        way = follow(recipe, Way(task, sensitivity, solver, safeguard, refine), keep)
        with way.naming():
            found = way.noted(searched(way.task, parsed, way.method(objective))[0])
        return announced(replace(found, made=made_here(phases)))


def goal(limits: Limits, objective: Objective | None) -> tuple[Limit, ...]:
    """The limits, if anything is asked at all.

    Raises:
        InputError: If there is neither a limit nor an objective.
        LimitError: If a limit cannot be read.
    """
    parsed = parse_limits(limits)
    # Without a limit nobody needs a search: every layer takes its most precise candidate.
    if not parsed and objective is None:
        raise InputError(
            "give at least one limit, such as latency=0.6x:w8a8 or weight_bytes=300KiB"
        )
    return tuple(parsed)


@random_state_kept()
def searched(
    task: Task,
    limits: Sequence[Limit],
    method: Method,
    axis: str | None = None,
    folder: Path | None = None,
    curve: Curve | None = None,
) -> tuple[SearchResult, Session]:
    """The search itself, and what is live of it; without limits or an objective the least loss.

    Args:
        task: As in ``search``.
        limits: That have been read.
        method: How.
        axis: The resource of a frontier that the result is asked for.
        folder: Where the state of a tuning is kept after each epoch; ``None``: nowhere.
        curve: What the caller draws beside the answer, for the plan.
    """
    check_split(task, method, [limit.resource for limit in limits])
    if task.streamed:
        check_streamed(task, method)
    with streaming(bool(task.streamed), task.memory_bytes):
        found, session = _searched(task, limits, method, axis, folder, curve)
    asked = Asked.of(limits, method.objective, method.safeguard)
    return replace(found, provenance=replace(found.provenance, asked=asked)), session


def _searched(
    task: Task,
    limits: Sequence[Limit],
    method: Method,
    axis: str | None,
    folder: Path | None,
    curve: Curve | None,
) -> tuple[SearchResult, Session]:
    def asked(prepared: Prepared) -> tuple[Constraints, CostTable | None]:
        constraints = prepared.constraints(limits)
        if axis is not None:
            prepared.pricing.table(axis, prepared.candidates)
        return constraints, method.minimized(prepared)

    # what cannot be met, minimized, divided or drawn is refused before what takes long: trying
    # transformations, which may change what layers there are, and the estimate
    start = perf_counter()
    with phase("layers and costs"):
        prepared = Prepared.untransformed(task)
        constraints, table = asked(prepared)
        heads_of(prepared, task.parts)
    layers_s = perf_counter() - start
    if task.transforms:
        with phase("transformations"):
            prepared = prepared.with_transforms()
            constraints, table = asked(prepared)
    _check_estimate(prepared, method)
    tell_forecast(prepared, method, constraints, layers_s, curve)
    with phase(RANGES):
        _ = prepared.nearest
    if prepared.task.weight_rounding.reads_inputs:
        with phase(CODES):
            _ = prepared.rounded
    with phase(ESTIMATE):
        found = _estimate(prepared, method)

    def answered() -> SearchResult:
        return _answered(prepared, found, constraints, table, method, folder)

    ranks = prepared.ranks
    if ranks is None:
        return answered(), Session(prepared)
    return ranks.led(answered, MeasuredShare(prepared, ranks)), Session(prepared)


def _answered(
    prepared: Prepared,
    found: Sensitivity,
    constraints: Constraints,
    table: CostTable | None,
    method: Method,
    folder: Path | None,
) -> SearchResult:
    """What comes after the estimate: solved, refined, finished, compared, measured, tuned."""
    problem = _posed(found, constraints, method.solver)
    asked = prepared.task.built_workers if method.solver.is_measuring else None
    with task_workers(asked) as workers:
        # only now, as a solver that measures needs the calibrated network
        method = method.measuring(prepared, workers)
        # Where a cost was minimised, it is one more budget of the problem that comes back.
        with phase(SOLVING):
            problem, solution = method.solve(problem, table, prepared)
    with phase(SOLVING):
        solution, rounds = method.refined(problem, solution, prepared)
    # With an objective, the least cost is a budget by now, and the loss has a limit to keep.
    accepts = method.accepts(problem, prepared)
    others: dict[str, AnswerCheck] = {}
    safeguard: Safeguard | None = None
    with phase(COMPARING):
        if method.safeguard and not method.solver.is_measuring:
            solution, others = best_answer(prepared, problem, solution, found.by_channels, accepts)
        finish = finished(prepared, problem, solution, accepts)
        if method.safeguard:
            solution, safeguard = never_worse(prepared, problem, solution, accepts)
            safeguard = replace(
                safeguard, prices=others.get(PRICES), unseen=others.get(UNSEEN),
                integers=others.get(INTEGERS),
            )  # fmt: skip
        if safeguard is not None and safeguard.replaced_by is not None:
            # Another answer, whose codes and ranges are those that all share so far.
            solution = method.with_own_loss(solution, prepared)
            finish = finished(prepared, problem, solution, accepts)
        split = prepared.task.parts
        if split is not None:
            problem, solution, inside = answer_in_parts(
                prepared, split, problem, solution, found, method.safeguard
            )
            if method.safeguard:
                safeguard = replace(safeguard or Safeguard(), inside=inside)
    with phase(MEASURING):
        result = Session(prepared).record(
            problem, solution, method.solver, method.estimator.name, rounds, found.check,
            safeguard, finish,
        )  # fmt: skip
    original, judge = result.comparison("original").measured, prepared.judges.on_held_out
    result = replace(result, steps=found.steps)
    if prepared.task.bias_correction:
        with phase("biases"):
            result = with_corrected_biases(
                result, prepared, lambda x: method.keeps(x, original, judge)
            )
    return _tuned(prepared, result, method, folder)


def _tuned(
    prepared: Prepared, result: SearchResult, method: Method, folder: Path | None
) -> SearchResult:
    """The result with its answer tuned, if that is asked for and helps."""
    tuning, unseen = prepared.task.tuning, prepared.unseen
    if tuning is None or unseen is None:
        return result
    original = result.comparison("original").measured
    examples = Examples.of(prepared.calibration, unseen, prepared.held_out, tuning.share)
    judge = prepared.judges.on_held_out
    tuner = Tuner(prepared.task.model, examples, tuning, prepared.task.seed, folder, judge)
    with phase("tuning"):
        return tuner.result(result, lambda measured: method.keeps(measured, original, judge))


def estimated(
    on: Estimation, task: Task, constraints: Constraints, estimator: SensitivityEstimator,
    solver: Solver,
) -> Problem:  # fmt: skip
    """The problem with its loss, as far as the solver can take it; no kept estimate is read."""
    check_prices_caches(estimator, task)
    found = in_memory(estimator.name, on, estimator.estimate)
    return _posed(found, constraints, solver)


def _posed(found: Sensitivity, constraints: Constraints, solver: Solver) -> Problem:
    interactions = found.interactions if solver.takes_interactions else None
    return Problem(found.table, constraints, interactions)


def _check_estimate(prepared: Prepared, method: Method) -> None:
    """Refuses what its estimator cannot do, before what takes long.

    Raises:
        InputError: If it prices no caches, or has nothing for workers to do.
    """
    estimator, workers = method.estimator, prepared.task.built_workers
    check_prices_caches(estimator, prepared.task)
    is_by_workers = workers is not None and workers.kind == "ray"
    if is_by_workers and not (estimator.asks_workers or method.solver.is_measuring):
        able = ", ".join(part.name for part in ESTIMATORS if part.asks_workers)
        raise InputError(
            f"--workers ray measures cells, of which the estimator {estimator.name!r} has none; "
            f"take {able}, or a solver that measures (surrogate:is_measured=true), or leave "
            "--workers out"
        )


def _estimate(prepared: Prepared, method: Method) -> Sensitivity:
    """With a few cells beside their measurement, where not every cell was measured anyway."""
    estimator = method.estimator
    seed, workers = prepared.task.seed, prepared.task.built_workers

    def made(on: Estimation) -> Sensitivity:
        with task_workers(workers if estimator.asks_workers else None) as tasks:
            judge = prepared.judges.on_calibration
            if tasks is not None and judge is not None and estimator.asks_score:
                ask_ahead(tasks, judge, on)
            return in_memory(estimator.name, replace(on, workers=tasks), checked)

    def checked(on: Estimation) -> Sensitivity:
        found = estimator.estimate(on)
        if found.check is not None or estimator.is_measuring:
            return found
        return replace(found, check=spot_check(on, found.table, seed))

    return kept_estimate(prepared.asked, estimator, seed, made, prepared.cache)
