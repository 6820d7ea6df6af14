"""What problems of parts of what layers read have in common: weights keep their formats."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Mask
from mpq.errors import InfeasibleError
from mpq.hardware_profiles.part_costs import part_costs
from mpq.problem.constraints import Constraints
from mpq.problem.layer_parts import LayerParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.defaults import SOLVER
from mpq.workflows.setup import Prepared

NOT_READ: Final = "embedding"
"""Layers of this kind read ids."""


def without_odd_ties(problem: Problem, divided: Mapping[str, LayerParts]) -> dict[str, LayerParts]:
    """Layers that are divided, without those that are tied to one of another number of parts."""
    found = dict(divided)
    for tie in problem.ties:
        # One precision of all, part by part; else they stay whole.
        if len({found[name].count if name in found else 1 for name in tie}) > 1:
            found = {name: parts for name, parts in found.items() if name not in tie}
    return found


def solved_reads(
    prepared: Prepared, problem: Problem, parts: Parts, losses: Array, open_to: Mask
) -> tuple[Problem, Solution] | None:
    """The problem of parts and its optimum; ``None`` where parts meet no limit.

    Args:
        prepared: The network's layers.
        problem: That of whole layers.
        parts: The rows.
        losses: ``[R, B]``.
        open_to: ``[L, B]`` what a layer's parts may take.
    """
    layers = prepared.pricing.layers
    budgets = (
        replace(b, tables=tuple(part_costs(parts, table, layers) for table in b.tables))
        for b in problem.budgets
    )
    asked = Problem(
        replace(problem.loss, layers=parts.row_names, values=losses, scores={}),
        Constraints(tuple(budgets), parts.row_ties),
        mask=np.repeat(open_to, parts.counts, axis=0),
        parts=parts,
    )
    try:
        return asked, solve(SOLVERS.build(SOLVER, prepared.task.seed), asked)
    except InfeasibleError:  # a limit that whole layers met by costs of pairs, for example
        return None
