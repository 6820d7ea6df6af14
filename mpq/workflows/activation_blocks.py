"""Bits inside what layers read: blocks of input channels with activations of different bits."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mpq._support.arrays import Array, Mask
from mpq.network.layer import Layer
from mpq.problem.parts import Parts, can_split_read
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.split import ACTIVATIONS, Split
from mpq.sensitivity.passes.block_prices import block_prices
from mpq.workflows.read_parts import NOT_READ, open_columns, solved_reads, without_odd_ties
from mpq.workflows.setup import Prepared


def solved_in_blocks(
    prepared: Prepared, split: Split, problem: Problem, solution: Solution
) -> tuple[Problem, Solution] | None:
    """The problem of blocks of what layers read, and its optimum; ``None`` where there are none.

    Weights keep their formats. A block's price is what it loses by itself (``block_prices``), so
    that blocks of all layers are chosen at once, whatever inputs the answer has. Layers that are
    tied have the same bits block by block.

    Args:
        prepared: Network, prices and examples.
        split: How large blocks are.
        problem: That of whole layers.
        solution: Its answer.
    """
    open_to = open_columns(problem, solution, can_split_read)
    parts = _parts(prepared, split, problem, open_to)
    if not parts.of_channels:
        return None
    losses = _row_losses(prepared, split, problem, parts, open_to)
    return solved_reads(prepared, problem, parts, losses, open_to)


def channels_read(layer: Layer) -> int:
    """Input channels of what a layer reads."""
    return layer.input_shape[-1 if layer.kind == "linear" else 1 - len(layer.weight_shape)]


def _parts(prepared: Prepared, split: Split, problem: Problem, open_to: Mask) -> Parts:
    layers = prepared.pricing.layers
    counts = {
        layer.name: -(-channels_read(layer) // split.size)
        for row, layer in enumerate(layers)
        if layer.has_weights and layer.kind != NOT_READ and open_to[row].sum() > 1
    }
    counts = without_odd_ties(problem, counts)
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

    That is taken for what the layer is priced at with its widest inputs besides. Its prices at
    fewer bits are not shared out among blocks: squares of sums, they are noisier than blocks' own.
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
