"""Codes of weights as they are kept: what they may be, and signs beside integers.

A weight of signs alone keeps the place of each in its table, as all formats with a table do. Where
its parts are in integers as well, signs are kept as the numbers -1 and 1, beside these. No torch.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.quantization.number_format import NumberFormat
from mpq.quantization.tensor_format import TensorFormat

if TYPE_CHECKING:
    Codes = np.ndarray[Any, np.dtype[Any]]


def beside_integers(codes: "Codes", number: NumberFormat) -> "Codes":
    """Codes of a whole weight as they are kept beside those of integers."""
    if not number.table:
        return codes
    return np.array(number.table).astype(np.int8)[codes]


def by_themselves(codes: "Codes", number: NumberFormat) -> "Codes":
    """Inverse of ``beside_integers``."""
    return np.searchsorted(number.table, codes).astype(np.uint8) if number.table else codes


def why_not_codes(codes: "Codes", tensor_format: TensorFormat) -> str:
    """Why codes ``[O, K]`` cannot be those of a format; empty: they can."""
    if tensor_format.channels is None:
        return _beyond(codes, *_reach(tensor_format))
    cells, shape = tensor_format.channels.cells, codes.shape
    if not tensor_format.channels.fits(*shape):
        return f"are of {shape[0]} channels, not {len(cells)}, or of other inputs"
    every = np.broadcast_to(cells, shape)
    found = (
        _why_not_part(codes[every == column], own)
        for column, own in enumerate(tensor_format.by_channel)
    )
    return next(filter(None, found), "")


def _why_not_part(codes: "Codes", own: TensorFormat) -> str:
    table = own.number.table
    if table:
        return "" if np.isin(codes, table).all() else f"are not all one of {table}"
    return _beyond(codes, *_reach(own))


def _beyond(codes: "Codes", low: float, high: float) -> str:
    if low <= codes.min() and codes.max() <= high:
        return ""
    return f"reach from {codes.min()} to {codes.max()}, not {low} to {high}"


def _reach(tensor_format: TensorFormat) -> tuple[float, float]:
    number = tensor_format.number
    if number.table:
        return 0, len(number.table) - 1
    if number.has_codebook:
        return 0, 2**number.bits - 1
    if number.is_float:
        return -number.max_value, number.max_value
    levels = 2**number.bits
    lowest = -(levels // 2) if tensor_format.symmetric else 0
    return lowest, lowest + levels - 1
