"""Bits inside what layers read: blocks of input channels with activations of different bits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Mask
from mpq.errors import InfeasibleError
from mpq.hardware_profiles.part_costs import part_costs
from mpq.network.layer import Layer
from mpq.problem.constraints import Constraints
from mpq.problem.parts import Parts, can_split_read
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.split import ACTIVATIONS, Split
from mpq.sensitivity.passes.block_prices import block_prices
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve
from mpq.workflows.defaults import SOLVER
from mpq.workflows.setup import Prepared

_NOT_READ: Final = "embedding"
"""Layers of this kind read ids."""


def solved_in_blocks(
    prepared: Prepared, split: Split, problem: Problem, solution: Solution
) -> tuple[tuple[Problem, Solution], ...]:
    """The problem of blocks of what layers read, and its optimum; nothing where there are none.

    Weights keep their formats. A block's price is what it loses by itself (``block_prices``), so
    that blocks of all layers are chosen at once, whatever inputs the answer has. Layers that are
    tied have the same bits block by block.

    Args:
        prepared: Network, prices and examples.
        split: How large blocks are.
        problem: That of whole layers.
        solution: Its answer.
    """
    open_to = _open_columns(problem, solution)
    parts = _parts(prepared, split, problem, open_to)
    if not parts.of_channels:
        return ()
    losses = _row_losses(prepared, split, problem, parts, open_to)
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
        return ((asked, solve(SOLVERS.build(SOLVER, prepared.task.seed), asked)),)
    except InfeasibleError:  # a limit that whole layers met by costs of pairs, for example
        return ()


def _open_columns(problem: Problem, solution: Solution) -> Mask:
    """``[L, B]`` what blocks may take: the answer's weight, and inputs like the answer's."""
    assert solution.columns is not None
    precisions = problem.loss.precisions
    allowed = problem.grouped.allowed[problem.grouped.group_of]
    found = np.zeros_like(allowed)
    for row, column in enumerate(solution.columns.tolist()):
        chosen = precisions[column]
        for other, precision in enumerate(precisions):
            is_alike = can_split_read(chosen.activation, precision.activation)
            is_same = precision.weight == chosen.weight
            found[row, other] = allowed[row, other] and is_alike and is_same
        found[row, column] = True
    return found


def channels_read(layer: Layer) -> int:
    """Input channels of what a layer reads."""
    return layer.input_shape[-1 if layer.kind == "linear" else 1 - len(layer.weight_shape)]


def _parts(prepared: Prepared, split: Split, problem: Problem, open_to: Mask) -> Parts:
    layers = prepared.pricing.layers
    counts = {
        layer.name: -(-channels_read(layer) // split.size)
        for row, layer in enumerate(layers)
        if layer.has_weights and layer.kind != _NOT_READ and open_to[row].sum() > 1
    }
    for tie in problem.ties:
        # One precision of all, and as many blocks of each; else they stay whole.
        if len({counts.get(name) for name in tie}) > 1:
            counts = {name: n for name, n in counts.items() if name not in tie}
    return Parts(
        problem.loss.layers,
        {name: np.arange(count) for name, count in counts.items()},
        dict.fromkeys(counts, split.size),
        axis=ACTIVATIONS,
        inputs={x.name: channels_read(x) for x in layers if x.name in counts},
        tied=problem.ties,
    )


def _row_losses(
    prepared: Prepared, split: Split, problem: Problem, parts: Parts, open_to: Mask
) -> Array:
    """``[R, B]`` of every block, what it loses by itself, and its share of what the weight loses.

    That is taken for what the layer is priced at with its widest inputs besides. Layers' prices at
    fewer bits, which are sums before they are squared, are of one draw of signs: shared out among
    blocks they cost accuracy (benchmarks/activation_blocks.py --choosing).
    """
    precisions, rows = problem.loss.precisions, parts.spread(problem.loss.values)
    columns = {
        name: np.flatnonzero(open_to[parts.layers.index(name)]) for name in parts.of_channels
    }
    formats = {
        name: [precisions[column].activation for column in own] for name, own in columns.items()
    }
    on = replace(prepared.asked, ranks=None)
    prices: Mapping[str, Array] = block_prices(on, formats, split.size, prepared.task.seed)
    for name, own in columns.items():
        some = parts.rows_of(name)
        by_block = prices.get(name, np.zeros((some.stop - some.start, len(own))))
        place = int(np.argmax([x.number.bits for x in formats[name]]))
        left = rows[some, int(own[place])].sum() - by_block[:, place].sum()
        rows[some.start : some.stop, own] = by_block + left * parts.shares[some, None]
    return rows
