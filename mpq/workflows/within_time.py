"""A search made to fit into a time: fewer examples first, then less done with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from mpq._support.events import Callback, listening
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.problem.limits import Limits
from mpq.sensitivity import SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.forecast import ESTIMATE
from mpq.workflows.method import Method
from mpq.workflows.objective import Objective
from mpq.workflows.plan import OF_ROUNDING, Phase, Plan, planned
from mpq.workflows.score_calls import OF_PRICES
from mpq.workflows.setup import Prepared
from mpq.workflows.step_plan import along_steps
from mpq.workflows.task import Task, check_task

FEWEST: Final = 16
"""Calibration examples below which something else is given up instead."""
WITHOUT_DATA: Final = "weight-error"
"""The estimator that takes no pass over the examples."""
Estimator = str | SensitivityEstimator


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """A search that takes no more than a time.

    Args:
        task: With fewer examples, or rounding to nearest, where that is needed.
        sensitivity: The estimator that was asked for, or ``weight-error``.
        plan: What it will take.
        told: What was given up, and what takes more time, for people; none: nothing.
    """

    task: Task
    sensitivity: Estimator
    plan: Plan
    told: tuple[str, ...]


def within_time(
    task: Task,
    time_s: float,
    limits: Limits = (),
    *,
    objective: Objective | None = None,
    sensitivity: Estimator = ESTIMATOR,
    solver: str | Solver = SOLVER,
    refine: int = 0,
    num_points: int = 0,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Plans a search (``plan``), and gives up what does not fit into a time.

    First examples, as long as ``FEWEST`` calibration examples are left; then rounding with regard
    to data; then the estimate by gradients, for which ``weight-error`` stands in. What is left is
    as much as fits.

    Args:
        task: As in ``mpq.search``.
        time_s: Seconds that it may take, the plan itself besides.
        limits: As in ``mpq.search``.
        objective: As in ``plan``.
        sensitivity: As in ``mpq.search``.
        solver: As in ``mpq.search``.
        refine: As in ``mpq.search``; an estimate by gradients is then not given up.
        num_points: As in ``plan``.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Raises:
        InputError: As ``mpq.search``; and if nothing fits: how long the least would take.
        InfeasibleError: If no assignment meets the limits.
    """
    check_task(task, "workflows.within_time.within_time")
    if not time_s > 0:
        raise InputError(f"a time is positive; got {time_s:g} s")
    method = Method.of(sensitivity, solver, task.seed, objective, refine)
    # Gradients are what rounds of refinement and workers need.
    has_choice = not refine and task.workers is None
    with listening(callbacks):
        whole, prepared = planned(task, limits, method, num_points)
        least = whole
        for plan, asked, estimator, told in _variants(whole, task, sensitivity, has_choice):
            share = _share(plan, time_s, task.held_out is None)
            least = plan
            if share is not None:
                return _fitted(prepared, plan, share, asked, estimator, told)
    few = _scaled(least, min(1.0, FEWEST / least.num_calibration), task.held_out is None)
    raise InputError(
        f"nothing fits into {time_s:.3g} s: with {few.num_calibration} calibration examples and "
        f"all given up that can be, it would take {few.total_s:.3g} s here; give more time, or "
        "fewer held-out examples"
    )


def _variants(
    whole: Plan, task: Task, sensitivity: Estimator, has_choice: bool
) -> Iterator[tuple[Plan, Task, Estimator, list[str]]]:
    """Plans with their tasks and estimators, and what each gives up, the least last."""
    yield whole, task, sensitivity, []
    told = []
    if any(phase.name in OF_ROUNDING for phase in whole.phases):
        told = ["weights are rounded to nearest"]
        whole = _without(whole, OF_ROUNDING)
        task = replace(task, rounding="nearest", sequential_rounding=False)
        yield whole, task, sensitivity, told
    if has_choice and sensitivity != WITHOUT_DATA:
        told = [*told, f"the estimator is {WITHOUT_DATA}"]
        yield _without(whole, (ESTIMATE, OF_PRICES)), task, WITHOUT_DATA, told


def _without(plan: Plan, names: Sequence[str]) -> Plan:
    kept: tuple[Phase, ...] = tuple(phase for phase in plan.phases if phase.name not in names)
    return replace(plan, phases=kept)


def _scaled(plan: Plan, share: float, is_split: bool) -> Plan:
    """With a share of the examples; of held-out ones where these are a part of them."""
    count = int(share * plan.num_calibration)
    held_out = int(share * plan.num_held_out) if is_split else plan.num_held_out
    return replace(plan, num_calibration=count, num_held_out=held_out)


def _share(plan: Plan, time_s: float, is_split: bool) -> float | None:
    """The largest share of the examples that fits, if that is not too few."""
    if plan.total_s <= time_s:
        return 1.0
    least_s = _scaled(plan, 0.0, is_split).total_s
    if least_s >= time_s:
        return None
    # Seconds grow in proportion.
    share = (time_s - least_s) / (plan.total_s - least_s)
    return share if share * plan.num_calibration >= FEWEST else None


def _fitted(
    prepared: Prepared,
    plan: Plan,
    share: float,
    task: Task,
    estimator: Estimator,
    told: list[str],
) -> Fitted:
    if plan.unplanned:
        told = [*told, f"not planned, and takes its time besides: {', '.join(plan.unplanned)}"]
    if share == 1.0:
        return Fitted(task, estimator, plan, tuple(told))
    data = prepared.network.examples(Calibration.of(task.calibration))
    count = int(share * data.num_examples)
    spread = along_steps(prepared.network, data, task.steps)
    # The first ones may be all at early steps.
    few = data.until(count) if spread is data else spread.split(1 - share)[0]
    scaled = _scaled(plan, share, task.held_out is None)
    some = f"{scaled.num_calibration} of {plan.num_calibration} calibration examples are used"
    return Fitted(replace(task, calibration=few), estimator, scaled, (some, *told))
