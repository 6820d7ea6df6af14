"""Measurements as CSV: one line per entry, the unit in the name of every column.

======================================  ============================================================
``kind``                                as in ``Layer``: ``linear``, ``conv2d``, ...
``weight_shape``                        as torch stores it, such as ``64x3x7x7``
``input_shape``, ``output_shape``       of one example, without the batch axis: ``3x224x224``
``groups``, ``batch_size``              whole numbers
``precision``                           such as ``w8a8``
``latency_seconds``                     or ``latency_ms``, ``latency_us``: one call, whole batch
``latency_low_*``, ``latency_high_*``   optional: 95 % interval, units as above
``energy_joules``                       optional; or ``energy_mj``, ``energy_uj``
``runs``, ``source``                    optional
======================================  ============================================================
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from typing import Final, TypeVar

from mpq.errors import FileFormatError, InputError
from mpq.hardware_profiles.measured_table.entry import Entry
from mpq.hardware_profiles.measured_table.shape import parse_shape, spell
from mpq.quantization.precision import Precision

SHAPES: Final = ("kind", "weight_shape", "input_shape", "output_shape", "groups", "batch_size")
LATENCY_UNITS: Final = {"seconds": 1.0, "ms": 1e3, "us": 1e6}
ENERGY_UNITS: Final = {"joules": 1.0, "mj": 1e3, "uj": 1e6}
AMOUNTS: Final[Mapping[str, Mapping[str, float]]] = {
    "latency": LATENCY_UNITS,
    "latency_low": LATENCY_UNITS,
    "latency_high": LATENCY_UNITS,
    "energy": ENERGY_UNITS,
}
"""Columns that need a unit; of every unit how many make a second or a joule."""
_REQUIRED: Final = (*SHAPES, "precision")
_OPTIONAL: Final = ("runs", "source")

T = TypeVar("T")
Row = Mapping[str, str]


def read_rows(text: str, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Line number and cells by column name of every line.

    Args:
        text: Everything that the file holds.
        columns: What its header must say; ``None``: anything.

    Raises:
        FileFormatError: If the header is another one, a column is there twice, a line is too short
            or too long, or there is no line.
    """
    # Spreadsheets begin UTF-8 files with a byte order mark, which would be part of a name.
    reader = csv.reader(StringIO(text.removeprefix("\ufeff")))
    heading = [name.strip() for name in next(reader, [])]
    if columns is not None and heading != list(columns):
        raise FileFormatError(
            f"expected the columns {', '.join(columns)}; got {', '.join(heading) or 'none'}"
        )
    if len(set(heading)) != len(heading):
        raise FileFormatError(f"a column is there twice: {', '.join(heading)}")
    cells: list[str] = []
    # Blank lines come as empty lists. `line_num` counts them, and quoted line breaks too.
    for cells in filter(None, reader):
        if len(cells) != len(heading):
            raise FileFormatError(
                f"line {reader.line_num} has {len(cells)} cells; its header has {len(heading)}"
            )
        yield reader.line_num, dict(zip(heading, map(str.strip, cells), strict=True))
    # Of an empty file nothing is said here: callers know which columns to ask for.
    if heading and not cells:
        raise FileFormatError("the table is empty: there is a header and no line")


def cell(line: int, row: Row, column: str, read: Callable[[str], T]) -> T:
    """What a cell says.

    Raises:
        FileFormatError: If it cannot be read; names line and column.
    """
    try:
        return read(row[column])
    except ValueError as error:  # also InputError
        raise FileFormatError(
            f"line {line}, column {column}: {row[column]!r} cannot be read: {error}"
        ) from error


def entries_from_csv(text: str) -> tuple[Entry, ...]:
    """Entries from a file as the head of this module describes it.

    Raises:
        FileFormatError: If a column is missing, unknown or without a unit, or a cell is malformed.
        InputError: If a number makes no sense.
    """
    units: dict[str, str] | None = None
    entries = []
    for line, row in read_rows(text):
        # The header is known with the first row only, as rows come by column name.
        units = _check_columns(tuple(row)) if units is None else units
        try:
            entries.append(_entry(line, row, units))
        # It is an InputError that names its line already.
        except FileFormatError:
            raise
        except InputError as error:
            raise FileFormatError(f"line {line}: {error}") from error
    if not entries:
        raise FileFormatError(f"the file is empty; expected the columns {_expected()}")
    return tuple(entries)


def _expected() -> str:
    return (
        f"{', '.join(_REQUIRED)}, latency_seconds (or latency_ms, latency_us); optional "
        "latency_low_seconds, latency_high_seconds, energy_joules (or energy_mj, energy_uj), "
        f"{', '.join(_OPTIONAL)}"
    )


def _check_columns(columns: Sequence[str]) -> dict[str, str]:
    """Column of every amount that has one."""
    found: dict[str, str] = {}
    for column in columns:
        amount, _, unit = column.rpartition("_")
        if unit in AMOUNTS.get(amount, {}):
            if amount in found:
                raise FileFormatError(
                    f"{amount} is there in two units, {found[amount]} and {column}; keep one"
                )
            found[amount] = column
        # The likely mistake is a unit left out, of which `unknown column` would not tell.
        elif column.startswith(("latency", "energy", "time")):
            raise FileFormatError(
                f"the column {column!r} has no unit that mpq knows: expected {_expected()}"
            )
        elif column not in (*_REQUIRED, *_OPTIONAL):
            raise FileFormatError(f"unknown column {column!r}: expected {_expected()}")
    missing = [name for name in _REQUIRED if name not in columns]
    missing += [] if "latency" in found else ["latency_seconds"]
    if missing:
        raise FileFormatError(
            f"no column {', '.join(missing)}: expected {_expected()}; got {', '.join(columns)}"
        )
    return found


def _entry(line: int, row: Row, units: Mapping[str, str]) -> Entry:
    def amount(name: str) -> float | None:
        column = units.get(name)
        # An empty latency is no unknown one: `float` refuses it below, with line and column.
        if column is None or (name != "latency" and not row[column]):
            return None
        unit = column.removeprefix(f"{name}_")
        return cell(line, row, column, float) / AMOUNTS[name][unit]

    # `_check_columns` has refused a table without that column.
    latency = amount("latency")
    assert latency is not None
    return Entry(
        kind=row["kind"],
        weight_shape=cell(line, row, "weight_shape", parse_shape),
        input_shape=cell(line, row, "input_shape", parse_shape),
        output_shape=cell(line, row, "output_shape", parse_shape),
        groups=cell(line, row, "groups", int),
        batch_size=cell(line, row, "batch_size", int),
        precision=cell(line, row, "precision", Precision.parse),
        latency_seconds=latency,
        latency_low_seconds=amount("latency_low"),
        latency_high_seconds=amount("latency_high"),
        energy_joules=amount("energy"),
        runs=cell(line, row, "runs", int) if row.get("runs") else None,
        source=row.get("source") or None,
    )


def entries_to_csv(entries: Sequence[Entry]) -> str:
    """Inverse of ``entries_from_csv``; what is unknown is an empty cell."""
    columns = (
        *_REQUIRED,
        "latency_seconds",
        "latency_low_seconds",
        "latency_high_seconds",
        "energy_joules",
        *_OPTIONAL,
    )
    text = StringIO()
    # Unix line ends: the csv module would write those of Windows by default.
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        row = entry.to_dict()
        writer.writerow(
            {key: spell(tuple(v)) if isinstance(v, list) else v for key, v in row.items()}
        )
    return text.getvalue()
