"""Arrays of JSON: by numpy, which takes a text or a truth value for a number without a word."""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any, Final

import numpy as np

from mpq._support.arrays import Array, Columns, Mask
from mpq._support.json_object import quoted
from mpq.errors import FileFormatError

_EMPTY: Final = NoneType
"""What JSON's ``null`` is read as."""


def texts(cells: Any, place: str) -> tuple[str, ...]:
    """A list of texts.

    Args:
        cells: What should be one.
        place: What it is, for the message: ``cost table: layers``.

    Raises:
        FileFormatError: If it is something else; names the member.
    """
    return tuple(_members(cells, (str,), "texts", place))


def columns(cells: Any, place: str) -> Columns:
    """A list of whole numbers of at most 64 bits; arguments and errors as ``texts``."""
    members = _members(cells, (int,), "whole numbers", place)
    try:
        return np.array(members, dtype=np.intp)
    except OverflowError as error:
        raise FileFormatError(f"{place}: a number has more than 64 bits") from error


def numbers(rows: Any, place: str, empty: bool = True) -> Array:
    """Rows of equally many numbers, as float64; null becomes ``nan``, where it is let in.

    Args:
        rows: What should be such rows.
        place: What they are, for the message: ``cost table: values``.
        empty: Whether a cell may be null.

    Raises:
        FileFormatError: If they are something else; names row and column.
    """
    kinds = (int, float, _EMPTY) if empty else (int, float)
    cells = _rows(rows, kinds, "numbers", place)
    try:
        # Without a row the array would have one axis, and without a column as well.
        return np.array(cells, dtype=np.float64)
    except OverflowError as error:
        raise FileFormatError(f"{place}: a number is too large for 64 bits") from error


def number(value: Any, place: str) -> float:
    """A number that float64 can hold; arguments and errors as ``texts``."""
    (found,) = _members([value], (int, float), "a number", place)
    try:
        return float(found)
    except OverflowError as error:
        raise FileFormatError(f"{place}: the number is too large for 64 bits") from error


def truth_values(rows: Any, place: str) -> Mask:
    """Rows of equally many truth values; arguments and errors as ``numbers``."""
    return np.array(_rows(rows, (bool,), "truth values", place), dtype=np.bool_)


def _rows(rows: Any, kinds: Iterable[type], expected: str, place: str) -> list[list[Any]]:
    found: list[list[Any]] = _members(rows, (list,), f"lists of {expected}", place)
    # All cells at once: rows are looked at one by one only where one is wrong.
    if set(map(type, chain.from_iterable(found))) - set(kinds):
        for index, row in enumerate(found):
            _members(row, kinds, expected, f"{place}/{index}")
    for index, row in enumerate(found):
        if len(row) != len(found[0]):
            raise FileFormatError(
                f"{place}/{index}: expected {len(found[0])} {expected} as in the first row, got "
                f"{len(row)}"
            )
    return found


def _members(cells: Any, kinds: Iterable[type], expected: str, place: str) -> list[Any]:
    if not isinstance(cells, list):
        raise FileFormatError(f"{place}: expected a list of {expected}, got {quoted(cells)}")
    # By type and not by `isinstance`: `true` is a whole number to Python.
    wrong = set(map(type, cells)) - set(kinds)
    if wrong:
        index, cell = next((i, x) for i, x in enumerate(cells) if type(x) in wrong)
        raise FileFormatError(f"{place}/{index}: expected {expected}, got {quoted(cell)}")
    return cells


def encoded(array: Array) -> dict[str, Any]:
    """JSON-ready, to the last bit: shape, and base64 of little-endian float64."""
    content = b64encode(array.astype("<f8").tobytes()).decode("ascii")
    return {"shape": list(array.shape), "float64_base64": content}


def decoded(data: Mapping[str, Any]) -> Array:
    """Inverse of ``encoded``, of a file of our own."""
    found = np.frombuffer(b64decode(data["float64_base64"]), dtype="<f8")
    return found.reshape(data["shape"]).astype(np.float64)
