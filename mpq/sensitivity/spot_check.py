"""A handful of cells of an estimate, measured: does the prediction hold on this network?"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mpq._support.arrays import Array
from mpq.network.mapped import release
from mpq.problem.cost_table import WEIGHTS, CostTable
from mpq.sensitivity.checked import AGREEMENT, APART, DEAR, FACTOR, CheckedCell, SpotCheck
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.passes.rank_share import RankShare

NUM_CELLS: Final = 8
"""Cells that are measured: each takes one pass over few examples."""
NUM_CHOOSING: Final = 3
"""Of these, layers by whose output something is chosen: the cheapest ones."""
MIN_PAIRS: Final = 10
"""Pairs of cells, of up to 28, that tell anything about an order."""
_PURPOSE: Final = "spot check"
MIN_EXAMPLES: Final = 16
MAX_EXAMPLES: Final = 64
SHARE: Final = 3
"""Examples that cells are measured on: a third of the data, enough to see a factor. With the pass
of the original, a check takes at most 9 passes over these: 3 forward passes, and less of much
data; of fewer than 48 examples up to 9."""
MIN_POSITIONS: Final = 512
FEWEST: Final = 4
"""Of sequences fewer than ``MIN_EXAMPLES`` are enough, whose outputs have so many positions
together, yet never fewer than ``FEWEST``."""


def spot_check(on: Estimation, table: CostTable, seed: int = 0) -> SpotCheck:
    """Measures a few cells: the cheapest and the most expensive layers, and some at random.

    Args:
        on: What was asked of the estimator.
        table: ``[L, B]`` its answer. Where its unit is not the metric's, only its order and layers
            without any loss can be judged.
        seed: Which cells are drawn.
    """
    blind, layers = without_gradient(on, table), on.network.layers
    negative = _negative(table)
    chosen = chosen_cells(on, table, blind, seed)
    few = few_examples(on)
    values = measured_cells(few, chosen, _PURPOSE)
    cells = judged(on, table, chosen, values)
    # One of the original beside theirs.
    passes = (len(cells) + bool(cells)) * few.data.num_examples / on.data.num_examples
    return SpotCheck(
        cells,
        on.network.metric.unit,
        passes,
        no_gradient=tuple(name for name in blind if name not in negative),
        agreement=agreement(cells),
        out_of_order=out_of_order(cells),
        compares_size=_is_comparable(on, table),
        choosing=tuple(layer.name for layer in layers if layer.is_choosing),
        before_choice=tuple(x.name for x in layers if x.is_before_choice and not x.is_choosing),
        negative=negative,
    )


def judged(
    on: Estimation,
    table: CostTable,
    chosen: Mapping[str, Sequence[int]],
    values: Mapping[str, Array],
) -> tuple[CheckedCell, ...]:
    """Predictions beside their measurements.

    Args:
        on: The layers and candidates.
        table: ``[L, B]`` what was predicted.
        chosen: Layer to columns, from ``chosen_cells``.
        values: Layer to what was measured at these columns, in the metric's unit.
    """
    largest = max((float(np.max(row)) for row in values.values()), default=0.0)
    comparable = _is_comparable(on, table)
    cells = []
    for name, columns in chosen.items():
        for column, measured in zip(columns, values[name].tolist(), strict=True):
            predicted = float(table.values[table.layers.index(name), column])
            # Too cheap: the solver would take it for free. Too dear only costs what it forgoes.
            is_off = comparable and _is_above(measured, predicted, FACTOR, largest)
            is_dear = comparable and _is_above(predicted, measured, DEAR, largest)
            precision = str(on.candidates[column])
            cells.append(CheckedCell(name, precision, predicted, measured, is_off, is_dear))
    return tuple(cells)


def _is_comparable(on: Estimation, table: CostTable) -> bool:
    return table.unit == on.network.metric.unit


def _is_above(one: float, other: float, factor: float, largest: float) -> bool:
    # What is a millionth of the largest loss is rounding, on which nothing depends.
    return one > factor * max(other, 1e-6 * largest)


def agreement(cells: Sequence[CheckedCell]) -> float | None:
    """Kendall's tau over the pairs whose measurements are ``APART``, predicted ties counting as 0.

    Kendall (1938), Biometrika 30, 81. Pairs that a few examples cannot tell apart are left out, so
    that a network of layers that are all alike raises no alarm.

    Returns:
        ``None`` for fewer than ``MIN_PAIRS`` pairs.
    """
    # Below that measurements are rounding, see `_is_above`.
    least = 1e-6 * max((cell.measured for cell in cells), default=0.0)
    signs = [
        float(np.sign(one.predicted - other.predicted))
        for one in cells
        for other in cells
        if one.measured > APART * max(other.measured, least)
    ]
    return float(np.mean(signs)) if len(signs) >= MIN_PAIRS else None


def out_of_order(cells: Sequence[CheckedCell]) -> tuple[str, ...]:
    """The layers, taken out one after the other, without which the rest is in order."""
    left, named = list(cells), list[str]()
    while (tau := agreement(left)) is not None and tau < AGREEMENT:
        names = dict.fromkeys(cell.layer for cell in left)
        rests = {name: [cell for cell in left if cell.layer != name] for name in names}
        # Where too few pairs would be left, nothing is known to disagree any more.
        found = {name: agreement(rest) for name, rest in rests.items()}
        worst = max(names, key=lambda name: 1.0 if (t := found[name]) is None else t)
        named.append(worst)
        left = rests[worst]
    return tuple(named)


def without_gradient(on: Estimation, table: CostTable) -> tuple[str, ...]:
    """Layers that lose nothing at every candidate, though a candidate changes their weight."""
    tried = [c for c in on.tried if not on.candidates[c].weight.is_exact]
    if not tried:
        return ()
    silent = ~table.values[:, tried].any(axis=1)
    return tuple(name for name in np.array(on.names)[silent].tolist() if _changes(on, name, tried))


def _negative(table: CostTable) -> tuple[str, ...]:
    """Layers whose weights have a curvature below 0: inputs alone have a price, if any."""
    # Other estimators' scores may be below 0 as well, and are no curvatures.
    if table.name != "hessian-trace" or WEIGHTS not in table.scores:
        return ()
    pairs = zip(table.layers, table.scores[WEIGHTS], strict=True)
    return tuple(name for name, curvature in pairs if curvature < 0)


def _changes(on: Estimation, name: str, tried: Sequence[int]) -> bool:
    weight = on.network.weight(name)
    found = any(
        not bool((on.rounded_weight(name, on.candidates[c].weight) == weight).all()) for c in tried
    )
    release([weight])
    return found


def chosen_cells(
    on: Estimation, table: CostTable, blind: Collection[str], seed: int
) -> dict[str, list[int]]:
    """Layer to columns: where a wrong prediction would do most harm, and some at random.

    Args:
        on: The layers and candidates.
        table: ``[L, B]`` what was predicted.
        blind: Layers predicted to lose nothing: what is known to fail is not tried.
        seed: Which cells are drawn.
    """
    rows = np.flatnonzero([name not in blind for name in on.names])
    if not on.tried or not len(rows):
        return {}
    values = table.values[rows][:, list(on.tried)]
    # Where most is lost in all: the fewest bits, which the solver gives to the cheapest layers.
    lowest = on.tried[int(np.nanargmax(np.nansum(values, axis=0)))]
    order = rows[np.argsort(table.values[rows, lowest], kind="stable")].tolist()
    rng = np.random.default_rng(seed)
    # First of all where a jump may be, which gradients do not see.
    choosing = [row for row in order if on.network.layers[row].is_choosing][:NUM_CHOOSING]
    cells = [(row, lowest) for row in (*choosing, *order[:3], *order[-2:])]
    drawn = zip(
        rng.choice(rows, size=NUM_CELLS).tolist(),
        rng.choice(on.tried, size=NUM_CELLS).tolist(),
        strict=True,
    )
    unique = list(dict.fromkeys([*cells, *drawn]))[:NUM_CELLS]
    found: dict[str, list[int]] = {}
    for row, column in sorted(unique):
        found.setdefault(on.names[row], []).append(column)
    return found


def few_examples(on: Estimation) -> Estimation:
    """The same question on the first examples only."""
    share = -(-on.data.num_examples // SHARE)
    least = min(MIN_EXAMPLES, max(FEWEST, -(-MIN_POSITIONS // max(on.network.num_positions, 1))))
    # Of so few examples a handful of cells is measured before another process has begun.
    return replace(on, workers=None, data=on.data.until(min(MAX_EXAMPLES, max(least, share))))


def measured_rows(
    on: Estimation,
    names: Sequence[str],
    columns: Sequence[int] | None = None,
    purpose: str = "measured, layer by layer",
) -> Array:
    """``[len(names), columns]`` measured losses of these layers, one at a time.

    Args:
        on: The network, and the examples.
        names: Layers of it, in the order of the network's.
        columns: Candidates that are measured; ``None``: all.
        purpose: What the progress bar says.
    """
    asked = [*range(len(on.candidates))] if columns is None else [*columns]
    found = measured_cells(on, dict.fromkeys(names, asked), purpose)
    return np.stack([found[name] for name in names])


def measured_cells(
    on: Estimation, cells: Mapping[str, Sequence[int]], purpose: str
) -> dict[str, Array]:
    """Layer to the measured losses of its cells, one at a time.

    Args:
        on: The network, and the examples.
        cells: Layer to columns of the candidates.
        purpose: What the progress bar says.
    """
    if not cells:
        return {}
    layers = tuple(layer for layer in on.network.layers if layer.name in cells)
    columns = sorted({column for asked in cells.values() for column in asked})
    asked = replace(
        on,
        network=replace(on.network, layers=layers),
        candidates=[on.candidates[column] for column in columns],
        # That of the question is for the estimate itself.
        division=None if on.ranks is None else RankShare(on.ranks),
    )
    within = {name: [columns.index(c) for c in chosen] for name, chosen in cells.items()}
    names, table = asked.names, Measured().measure(asked, purpose, within).table.values
    return {name: table[names.index(name), places] for name, places in within.items()}
