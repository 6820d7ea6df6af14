"""Limits as users write them, and what they come to in a table's unit."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Self, TypeAlias, final

import numpy as np

from mpq.errors import LimitError
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision

# Looked up as written, since case tells prefixes apart: m is milli and M is mega.
_SCALES: dict[str, dict[str, float]] = {
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "bytes": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9} | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "joules": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12},
    "bitops": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "bits": {"": 1.0, "bit": 1.0, "bits": 1.0},
}


# No sign: a limit is positive, and a minus is better refused as a misspelling.
_NUMBER = r"(?P<number>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)"


_RELATIVE = re.compile(_NUMBER + r"\s*x[\s:]\s*(?P<precision>\S+)", re.IGNORECASE)


_ABSOLUTE = re.compile(_NUMBER + r"\s*(?P<unit>[A-Za-zµ]*)", re.IGNORECASE)


@final
@dataclass(frozen=True)
class Limit:
    """A limit as the user wrote it: absolute, or relative to a uniform precision.

    Args:
        resource: Name of the resource, such as ``latency``.
        number: Absolute amount in the unit, or the factor.
        unit: As written; empty for a relative limit. ``None``: that of the resource's table
            (seconds, bytes, joules, bits, bitops).
        reference: The uniform precision that a relative limit refers to.

    Raises:
        LimitError: If the number is not positive.

    >>> Limit.parse("latency=0.6x:w8a8").reference
    Precision('w8a8')
    >>> Limit.parse("weight_bytes = 300KiB").unit
    'KiB'
    """

    resource: str
    number: float
    unit: str | None = None
    reference: Precision | None = None

    def __post_init__(self) -> None:
        if not self.number > 0:
            raise LimitError(f"{self}: a limit is positive")

    def __str__(self) -> str:
        relative = "" if self.reference is None else f"x:{self.reference}"
        return f"{self.resource}={self.number:.15g}{self.unit or relative}"

    @property
    def amount(self) -> float | str:
        """As a mapping of limits has it, exactly: a number in the table's unit, or a text.

        >>> Limit.parse("latency=0.6x:w8a8").amount, Limit("latency", 0.0025).amount
        ('0.6x:w8a8', 0.0025)
        """
        if self.reference is not None:
            return f"{self.number!r}x:{self.reference}"
        if self.unit is None:
            return self.number
        return f"{self.number!r}".removesuffix(".0") + self.unit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``resource=2.5ms``, ``resource=300KiB`` or ``resource=0.6x:w8a8``.

        Raises:
            LimitError: If the text is not of that form, or not positive.
        """
        resource, _, amount = (part.strip() for part in text.partition("="))
        match = _RELATIVE.fullmatch(amount) or _ABSOLUTE.fullmatch(amount)
        if not resource or match is None:
            raise LimitError(
                f"{text!r} is not a limit: write resource=amount, such as latency=2.5ms, "
                "weight_bytes=300KiB, effective_bits=4.5, or relative to a uniform precision: "
                "latency=0.6x:w8a8"
            )
        parts = match.groupdict()
        number, unit = float(parts["number"]), parts.get("unit", "")
        # Without its precision "0.6x" looks like an amount in a unit called x.
        if unit.lower() == "x":
            raise LimitError(f"{text!r}: say relative to which precision, such as {amount}:w8a8")
        reference = Precision.parse(parts["precision"]) if "precision" in parts else None
        return cls(resource, number, unit, reference)

    def resolve(self, table: CostTable, *steps: CostTable) -> float:
        """The limit in the table's unit.

        Args:
            table: ``[L, B]`` cost of the resource; a relative limit needs its reference column.
            steps: Further tables of a resource that is the maximum of several.

        Raises:
            LimitError: If the unit does not fit the table's, or the device cannot run a layer at
                the reference precision.
        """
        if self.reference is not None:
            # The network at the reference precision has a peak of its own, maybe in another step.
            costs = [uniform_cost(each, self.reference) for each in (table, *steps)]
            return self.number * max(costs)
        if self.unit is None:
            return self.number
        scales = _SCALES.get(table.unit, {})
        if self.unit not in scales:
            raise LimitError(
                f"{self.resource}: {self._unit_problem(table.unit)}; "
                + (f"use one of {', '.join(unit or '(none)' for unit in scales)}" if scales else "")
                + ("" if scales else "write the limit relative to a precision, such as 0.6x:w8a8")
            )
        return self.number * scales[self.unit]

    def _unit_problem(self, unit: str) -> str:
        if not self.unit:
            return f"the limit {self.number:g} has no unit"
        return f"unit {self.unit!r} does not measure {unit}"


def written_limit(resource: str, amount: float, unit: str) -> str:
    """An exact amount in a table's unit as ``Limit.parse`` reads it.

    Empty where the unit is none that can be written: then a limit can be relative alone.

    >>> written_limit("latency", 0.00053125, "seconds"), written_limit("mine", 3.0, "cycles")
    ('latency=0.00053125s', '')
    """
    symbols = [symbol for symbol, scale in _SCALES.get(unit, {}).items() if scale == 1]
    return f"{resource}={amount!r}".removesuffix(".0") + symbols[0] if symbols else ""


def bytes_of(name: str, amount: int | str) -> int:
    """A size in bytes, from a whole number or a text such as ``8GiB``.

    Args:
        name: What it is of, for messages.
        amount: As the user gave it.

    Raises:
        LimitError: If it is no positive size.
    """
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
        return amount
    match = _ABSOLUTE.fullmatch(amount.strip()) if isinstance(amount, str) else None
    scale = _SCALES["bytes"].get(match["unit"] or "") if match else None
    if match is None or scale is None or not float(match["number"]) > 0:
        raise LimitError(
            f"{name} is a size such as 8GiB, or a number of bytes; got {amount!r} (units: "
            f"{', '.join(_SCALES['bytes'])})"
        )
    return round(float(match["number"]) * scale)


def uniform_cost(table: CostTable, precision: Precision) -> float:
    """Cost of the whole network at one precision, constant and pairs too, in the table's unit.

    Raises:
        LimitError: If a layer cannot run at that precision.
    """
    index = table.index_of(precision)
    # Looked at before adding up: the sum would be nan and name no layer.
    column = table.values[:, index]
    if np.isnan(column).any():
        layer = table.layers[int(np.flatnonzero(np.isnan(column))[0])]
        raise LimitError(
            f"{table.name}: layer {layer!r} cannot run at {precision}, so that a limit cannot be "
            "relative to it; choose another reference or give an absolute limit"
        )
    return table.total(np.full(len(table.layers), index, dtype=np.intp))


Limits: TypeAlias = Mapping[str, float | str | Limit] | Iterable[str | Limit] | Limit
"""Limits as Python code gives them.

A mapping of resource to amount: a number in the table's own unit (seconds, bytes, joules, bits,
bitops), or text such as ``"2.5ms"`` and ``"0.6x:w8a8"``; a sequence of ``Limit`` and of texts such
as ``"latency=2.5ms"``; or one ``Limit``.
"""


def parse_limits(limits: Limits) -> tuple[Limit, ...]:
    """Reads several limits, each resource at most once.

    Raises:
        LimitError: If a limit is misspelled, or a resource has two.
    """
    parsed = tuple(limit for _, limit in written_limits(limits))
    names = [limit.resource for limit in parsed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LimitError(f"{twice[0]} has {names.count(twice[0])} limits; give one")
    return parsed


def written_limits(limits: Limits) -> list[tuple[str, Limit]]:
    """Reads several limits, each with how it was written; a resource may have more than one.

    Raises:
        LimitError: If a limit is misspelled.

    >>> [text for text, _ in written_limits({"latency": 2.5e-3, "weight_bytes": "0.6x:w8"})]
    ['latency=0.0025', 'weight_bytes=0.6x:w8']
    """
    # A text is a sequence as well, and would be read as one limit per letter.
    if isinstance(limits, str):
        raise LimitError(
            f"limits are several: write [{limits!r}], or a mapping such as "
            '{"latency": 2.5e-3, "weight_bytes": "300KiB"}'
        )
    if isinstance(limits, Limit):
        return [_limit(limits)]
    if not isinstance(limits, Mapping):
        return [_limit(limit) for limit in limits]
    return [_amount(resource, amount) for resource, amount in limits.items()]


def _limit(given: str | Limit) -> tuple[str, Limit]:
    if isinstance(given, Limit):
        return str(given), given
    if isinstance(given, str):
        return given, Limit.parse(given)
    raise LimitError(f"{given!r} is not a limit: write 'latency=2.5ms' or a Limit")


def _amount(resource: str, amount: float | str | Limit) -> tuple[str, Limit]:
    """One entry of a mapping."""
    if isinstance(amount, str):
        return _limit(f"{resource}={amount}")
    if isinstance(amount, Limit):
        if amount.resource != resource:
            raise LimitError(f"limits[{resource!r}] is a limit on {amount.resource!r}")
        return _limit(amount)
    # numpy's numbers are Real; True is an int in Python, but no amount; nan and inf bound nothing
    if isinstance(amount, bool) or not isinstance(amount, Real) or not 0 < amount < inf:
        raise LimitError(
            f"limits[{resource!r}] is {amount!r}; expected a positive number in the resource's own "
            "unit (seconds, bytes, joules, bits), or text such as '2.5ms' or '0.6x:w8a8'"
        )
    return _limit(Limit(resource, float(amount)))
