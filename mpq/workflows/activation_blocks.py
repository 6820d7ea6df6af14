"""Bits inside what layers read: blocks of input channels with activations of different bits."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mpq._support.arrays import Array, Mask
from mpq.network.layer import Layer
from mpq.problem.alike_formats import can_split_read, open_reads
from mpq.problem.layer_parts import LayerParts, ReadParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.problem.split import Split
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity.passes.block_prices import block_prices
from mpq.workflows.read_parts import NOT_READ, solved_reads, without_odd_ties
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
    assert solution.columns is not None
    open_to = open_reads(problem, solution.columns, can_split_read)
    formats = _formats(prepared, problem, open_to)
    on = replace(prepared.asked, ranks=None)
    # A layer whose blocks have no price, as it reads no tensor by position, stays whole.
    prices = block_prices(on, formats, split.size, prepared.task.seed) if formats else {}
    parts = _parts(prepared, split, problem, prices)
    if not parts.divided:
        return None
    losses = _row_losses(problem, parts, open_to, prices)
    return solved_reads(prepared, problem, parts, losses, open_to)


def channels_read(layer: Layer) -> int:
    """Input channels of what a layer reads."""
    return layer.input_shape[-1 if layer.kind == "linear" else 1 - len(layer.weight_shape)]


def _formats(prepared: Prepared, problem: Problem, open_to: Mask) -> dict[str, list[TensorFormat]]:
    """Layer name to what its blocks may take, of layers that have a choice."""
    precisions = problem.loss.precisions
    return {
        layer.name: [precisions[column].activation for column in np.flatnonzero(open_to[row])]
        for row, layer in enumerate(prepared.pricing.layers)
        if layer.has_weights and layer.kind != NOT_READ and open_to[row].sum() > 1
    }


def _parts(
    prepared: Prepared, split: Split, problem: Problem, prices: Mapping[str, Array]
) -> Parts:
    layers = prepared.pricing.layers
    parts: dict[str, LayerParts] = {
        x.name: ReadParts(channels_read(x), split.size) for x in layers if x.name in prices
    }
    return Parts(problem.loss.layers, without_odd_ties(problem, parts), tied=problem.ties)


def _row_losses(
    problem: Problem, parts: Parts, open_to: Mask, prices: Mapping[str, Array]
) -> Array:
    """``[R, B]`` of every block, what it loses by itself, and its share of what the weight loses.

    That is taken for what the layer is priced at with its widest inputs besides. Its prices at
    fewer bits are not shared out among blocks: squares of sums, they are noisier than blocks' own.
    """
    precisions, rows = problem.loss.precisions, parts.spread(problem.loss.values)
    for name in parts.divided:
        own = np.flatnonzero(open_to[parts.layers.index(name)])
        some, by_block = parts.rows_of(name), prices[name]
        place = int(np.argmax([precisions[column].activation.number.bits for column in own]))
        left = rows[some, int(own[place])].sum() - by_block[:, place].sum()
        rows[some.start : some.stop, own] = by_block + left * parts.shares[some, None]
    return rows
