"""Bits of what layers read by cluster of a diffusion's steps; weights are the same at all."""

from mpq.problem.alike_formats import can_differ_by_step, open_reads
from mpq.problem.layer_parts import StepParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.sensitivity import Sensitivity
from mpq.workflows.read_parts import NOT_READ, solved_reads, without_odd_ties
from mpq.workflows.setup import Prepared


def solved_by_step(
    prepared: Prepared, problem: Problem, solution: Solution, found: Sensitivity
) -> tuple[Problem, Solution] | None:
    """The problem whose rows are layers at clusters of steps, and its optimum.

    Weights keep their formats. A row's price is what the layer loses at the cluster's examples
    (``Sensitivity.steps``), and its costs their share, so that limits are on means over steps.

    Args:
        prepared: The network, and its clusters of steps.
        problem: That of whole layers.
        solution: Its answer.
        found: The estimate.

    Returns:
        ``None`` where nothing is known of steps, or no layer has two formats to choose from.
    """
    plan, shares = prepared.step_plan, found.steps
    if plan is None or shares is None:
        return None
    assert solution.columns is not None
    open_to = open_reads(problem, solution.columns, can_differ_by_step)
    layers = prepared.pricing.layers
    by_step = StepParts(plan.record.num_calibration)
    divided = without_odd_ties(
        problem,
        {
            layer.name: by_step
            for row, layer in enumerate(layers)
            if layer.name in plan.divided and layer.kind != NOT_READ and open_to[row].sum() > 1
        },
    )
    if not divided:
        return None
    parts = Parts(problem.loss.layers, divided, tied=problem.ties)
    losses = parts.spread(problem.loss.values)
    of_steps = shares.losses(problem.loss.values) * shares.examples  # [L, B, T]
    for name in divided:
        losses[parts.rows_of(name)] = of_steps[parts.layers.index(name)].T
    return solved_reads(prepared, problem, parts, losses, open_to)
