"""Tables that somebody else made: one CSV with a row for every layer at every precision."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite, nan
from typing import Self, final

import numpy as np

from mpq._support.bounds import number_of
from mpq._support.json_object import quoted
from mpq._support.names import from_csv
from mpq.errors import FileFormatError, PrecisionError, UnknownNameError
from mpq.problem.cost_table import RESOURCE_UNITS, UNITS, CostTable
from mpq.quantization.precision import Precision

LOSS_UNITS = ("nats", "squared_output", "cosine_distance", "relative")


@final
@dataclass(frozen=True, eq=False)
class LongTable:
    """What a CSV in long form says.

    The header is ``layer,precision``, then a column for each quantity, named with its unit:
    ``loss_nats``, ``weight_bytes``, ``latency_seconds``. One column is a loss: its unit is one of
    ``LOSS_UNITS``. A column ``tie`` may name groups of layers that share a precision. An empty
    cell of a resource: the layer cannot run at that precision; a missing row: it is no candidate.
    Both have to be allowed, since a table that was cut off looks the same.

    Args:
        loss: ``[L, B]``; 0 where a layer has no row.
        resources: ``[L, B]`` of every other column, by name: ``latency``, ``weight_bytes``.
        ties: Layers with the same tie.
        candidates: Precisions of the layers that do not have all.
    """

    loss: CostTable
    resources: dict[str, CostTable]
    ties: tuple[tuple[str, ...], ...]
    candidates: dict[str, tuple[Precision, ...]]

    @classmethod
    def from_csv(cls, text: str, allow_missing: bool = False) -> Self:
        """Reads the rows, in any order.

        Args:
            text: What the file holds.
            allow_missing: Whether a layer may lack a row at a precision that another layer has, or
                a cell of a resource.

        Raises:
            FileFormatError: If a column is missing or has no unit, a row comes twice, is too short
                or too long, has no layer, or a cell is no finite number, below 0 in a resource, or
                missing without leave; says which line.
        """
        # Spreadsheets put a byte-order mark first, which would become part of the first heading.
        reader = csv.reader(StringIO(text.removeprefix("\ufeff")))
        # `line_num` also counts blank lines and quoted line breaks, which are no rows.
        rows = [(reader.line_num, row) for row in reader if row]
        # Headings only: a layer's name is taken as it is.
        header = [name.strip() for name in rows[0][1]] if rows else []
        if header[:2] != ["layer", "precision"] or len(rows) < 2:
            raise FileFormatError(
                "not a table of layers: the first columns are layer,precision and rows follow; got "
                f"{header or 'nothing'}"
            )
        # In the dicts below the last of two equal headings would replace the first.
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise FileFormatError(f"column {sorted(twice)[0]!r} comes twice")
        cells: Cells = {}
        for line, row in rows[1:]:
            if len(row) != len(header):
                raise FileFormatError(f"line {line} has {len(row)} cells, not {len(header)}")
            # Parsed, as int8 and w8a8 are one precision and thus one row.
            key = _key(line, row)
            if key in cells:
                raise FileFormatError(f"line {line}: {quoted(row[0])} at {row[1]} comes twice")
            cells[key] = line, dict(zip(header[2:], row[2:], strict=True))
        # In the order of the file: a set of names has another order in every process.
        layers = tuple(dict.fromkeys(layer for layer, _ in cells))
        precisions = tuple(dict.fromkeys(precision for _, precision in cells))
        if not allow_missing:
            _refuse_missing(layers, precisions, cells)
        tables = [
            _table(column, layers, precisions, cells) for column in header[2:] if column != "tie"
        ]
        losses = [table for table in tables if table.unit in LOSS_UNITS]
        if len(losses) != 1:
            raise FileFormatError(
                f"one column is a loss, in {', '.join(LOSS_UNITS)}; there are {len(losses)} of them"
            )
        # latency_seconds and latency_joules are both called latency; the dict keeps one of them.
        resources = {table.name: table for table in tables if table is not losses[0]}
        if len(resources) < len(tables) - 1 or losses[0].name in resources:
            raise FileFormatError(f"two columns have one name: {[t.name for t in tables]}")
        ties = _ties(
            (layer, row["tie"]) for (layer, _), (_, row) in cells.items() if row.get("tie")
        )
        candidates = _candidates(losses[0], resources.values(), cells)
        return cls(_with_zeros(losses[0], cells), resources, ties, candidates)


Cells = dict[tuple[str, Precision], tuple[int, dict[str, str]]]
"""Layer and precision to the line of the file, and what its columns say."""
_ALLOW = (
    "; every layer has every precision, unless missing ones are allowed (--allow-missing, "
    "allow_missing=True): these are then not chosen"
)


def _key(line: int, row: Sequence[str]) -> tuple[str, Precision]:
    layer = from_csv(row[0])
    if not layer.strip():
        raise FileFormatError(f"line {line} has no name of a layer")
    try:
        return layer, Precision.parse(row[1])
    except PrecisionError as error:
        raise FileFormatError(f"line {line}: {error}") from error


def _refuse_missing(layers: Sequence[str], precisions: Sequence[Precision], cells: Cells) -> None:
    for layer in layers:
        for precision in precisions:
            if (layer, precision) not in cells:
                raise FileFormatError(f"{quoted(layer)} has no row at {precision}{_ALLOW}")
    for (layer, precision), (line, row) in cells.items():
        empty = [column for column, cell in row.items() if column != "tie" and not cell]
        if empty:
            raise FileFormatError(
                f"line {line}: {quoted(layer)} at {precision} has no {empty[0]}{_ALLOW}"
            )


def _number(column: str, unit: str, line: int, text: str) -> float:
    """What a cell says; ``nan`` where it is empty."""
    if not text:
        return nan
    try:
        number = number_of(text)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise FileFormatError(f"line {line}, {column}: {quoted(text)} is no finite number")
    if number < 0 and unit in RESOURCE_UNITS:
        raise FileFormatError(f"line {line}, {column}: {text} {unit} are less than nothing")
    return number


def _table(
    column: str, layers: tuple[str, ...], precisions: tuple[Precision, ...], cells: Cells
) -> CostTable:
    unit = next((unit for unit in UNITS if column.endswith(unit)), None)
    if unit is None:
        raise UnknownNameError(f"unit at the end of column {column!r}", column, UNITS)
    # As `CostTable.column` spells it: the unit is part of the names weight_bytes, effective_bits.
    name = column if unit in ("bytes", "bits") else column.removesuffix(f"_{unit}")
    # A cell without a row is unavailable in a resource, and becomes 0 in a loss afterwards.
    values = np.full((len(layers), len(precisions)), np.nan)
    row_of, column_of = ({n: i for i, n in enumerate(names)} for names in (layers, precisions))
    for (layer, precision), (line, row) in cells.items():
        number = _number(column, unit, line, row[column])
        values[row_of[layer], column_of[precision]] = number
    return CostTable(name, unit, layers, precisions, values)


def _with_zeros(loss: CostTable, cells: Cells) -> CostTable:
    """A complete loss: cells without a row are no candidates, whatever they lose."""
    # A row whose loss is empty stays nan, which ``Problem`` refuses: only a missing row means no
    # candidate.
    values = loss.values.copy()
    for row, layer in enumerate(loss.layers):
        for column, precision in enumerate(loss.precisions):
            if (layer, precision) not in cells:
                values[row, column] = 0.0
    return CostTable(loss.name, loss.unit, loss.layers, loss.precisions, values)


def _candidates(
    loss: CostTable, resources: Iterable[CostTable], cells: Cells
) -> dict[str, tuple[Precision, ...]]:
    """Precisions that a layer has a row for and can run at, where these are not all."""
    runs = np.ones(loss.values.shape, dtype=np.bool_)
    for table in resources:
        runs &= ~np.isnan(table.values)
    found = {
        layer: tuple(p for p, can in zip(loss.precisions, row, strict=True) if can)
        for layer, row in zip(loss.layers, runs.tolist(), strict=True)
    }
    # Not said by the resources alone: there may be none.
    known = {layer: tuple(p for p in ps if (layer, p) in cells) for layer, ps in found.items()}
    return {layer: ps for layer, ps in known.items() if len(ps) < len(loss.precisions)}


def _ties(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    # The inner dicts are ordered sets: a layer repeats its tie in each of its rows.
    groups: dict[str, dict[str, None]] = {}
    tie_of: dict[str, str] = {}
    for layer, tie in pairs:
        if tie_of.setdefault(layer, tie) != tie:
            raise FileFormatError(f"{layer!r} has two ties, {tie_of[layer]!r} and {tie!r}")
        groups.setdefault(tie, {})[layer] = None
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
