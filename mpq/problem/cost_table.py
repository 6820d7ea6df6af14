"""What every layer costs at every precision: the one type that all measurements return."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from io import StringIO
from math import fsum, isfinite, isnan, nan
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support import schema_versions
from mpq._support.bounds import number_of
from mpq._support.json_arrays import number, numbers, texts
from mpq._support.json_object import json_object, require_keys, require_version
from mpq._support.names import for_csv, from_csv, shortened
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.problem.schema import check
from mpq.quantization.precision import Precision

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, eq=False)
class PairwiseCost:
    """What two layers cost together: converting the output of one to the format of the next.

    Its unit and precisions are those of the ``CostTable`` that it is in. Several pairs of the same
    two layers add up. Negative where running both in one format saves something, as fused
    operations do. A pair of precisions that cannot run side by side has no number: restrict the
    candidates instead.

    Args:
        first: Name of the layer whose precision is the row of ``values``.
        second: Name of another layer, whose precision is the column of ``values``.
        values: ``[B, B]``, finite: the cost of ``first`` at precision row ``b`` and ``second`` at
            precision column ``c``. Copied, and read-only afterwards.

    Raises:
        InputError: If both are one layer, the shape is not square, or a value is not finite.
    """

    first: str
    second: str
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        pair = f"pair of {self.first!r} and {self.second!r}"
        if self.first == self.second:
            raise InputError(f"{pair}: two different layers are a pair; give its cost to the layer")
        # Copied before it is locked: the caller's array stays writable, and no longer matters.
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise InputError(f"{pair}: expected [B, B], got {values.shape}")
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(
                f"{pair}: precisions {row} and {column} of the table cost {values[row, column]}; "
                "every cost of a pair must be finite: restrict the candidates instead"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: first, second, values."""
        return {"first": self.first, "second": self.second, "values": self.values.tolist()}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing or of another kind.
        """
        check(data, "pair_cost", "pair cost")
        values = numbers(data["values"], "not a pair cost: values", empty=False)
        return cls(data["first"], data["second"], values)


WEIGHTS, INPUTS = "weights", "inputs"
"""What scores of layers may be of."""
RESOURCE_UNITS = ("seconds", "bytes", "joules", "bitops", "bits")
UNITS = ("nats", "squared_output", "cosine_distance", *RESOURCE_UNITS, "relative", "layers")
"""Units that mpq knows: those of losses, of resources, and of what only ranks layers."""

_UNIT = re.compile(r"[a-z][a-z0-9_]*")
_SCALED = re.compile(
    r"[pnumkgt]?(s|i?b|j)|(minute|hour|day)s?|[a-z]+(second|byte|joule|bitop|bit)s?"
)
"""``ms``, ``kib``, ``hours``, ``millijoules``: how resources are often given; tables hold the whole
unit."""
_NEAR = 0.8
"""A word as like as this to a resource's unit is a misspelling of it (``second``, ``byte``)."""


def _check_unit(unit: str) -> None:
    """Lets a metric's own unit pass, and not what is meant to be a resource's.

    A wrong unit of a resource would be compared with limits in the right one; losses are compared
    with each other only.

    Raises:
        UnknownNameError: If it is neither.
    """
    if unit in UNITS:
        return
    # Of a metric of another package any word is a unit; only what looks like a resource's is not.
    is_meant = bool(_SCALED.fullmatch(unit)) or bool(
        get_close_matches(unit, RESOURCE_UNITS, 1, _NEAR)
    )
    if is_meant or not _UNIT.fullmatch(unit):
        raise UnknownNameError("unit", unit, UNITS)


@final
@dataclass(frozen=True, eq=False)
class CostTable:
    r"""What every layer costs at every precision, in one stated unit.

    .. math:: c(z) = c_0 + \sum_\ell c_{\ell z_\ell} + \sum_{(k, \ell)} p^{k \ell}_{z_k z_\ell}

    Args:
        name: What is counted, such as ``latency`` or ``sketch``.
        unit: What one unit of ``values`` means: one of ``UNITS``, or a word that a metric of
            another package declares for its losses. It need not be installed to read its tables.
        layers: ``[L]`` names of the layers, in the network's order.
        precisions: ``[B]`` precisions that a layer may be stored in, one per column.
        values: ``[L, B]``. ``nan`` means that the layer cannot run at that precision; infinite
            is refused. Copied, and read-only afterwards.
        constant: What the network costs besides its layers, whatever their precisions.
        pairs: What pairs of layers cost besides, such as converting between their formats.
        scores: ``[L]`` each: how sensitive layers are in themselves, whatever a precision changes,
            by ``WEIGHTS`` and by ``INPUTS``; of a loss whose method puts layers in that order.

    Raises:
        InputError: If the unit is unknown, a name comes twice, the shape does not fit, a value
            or a score is infinite, or a pair has other layers or precisions.
    """

    name: str
    unit: str
    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    values: npt.NDArray[np.float64]
    constant: float = 0.0
    pairs: tuple[PairwiseCost, ...] = ()
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        for what, names in (("layer", self.layers), ("precision", self.precisions)):
            if len(set(names)) != len(names):
                raise InputError(
                    f"{self.name}: a {what} is listed twice in {list(map(str, names))}"
                )
        values = np.array(self.values, dtype=np.float64)
        expected = (len(self.layers), len(self.precisions))
        if values.shape != expected:
            raise InputError(f"{self.name}: expected [L, B] = {expected}, got {values.shape}")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        # After the array is in place: the message reads the cell from it.
        self._refuse(np.isinf(values), "every cost must be finite (nan: cannot run there)")
        if not isfinite(self.constant):
            raise InputError(f"{self.name}: the constant must be finite, got {self.constant}")
        object.__setattr__(self, "constant", float(self.constant))  # 0 and 0.0 are one in a file
        self._check_pairs()
        for what, scores in self.scores.items():
            is_known = what in (WEIGHTS, INPUTS) and len(scores) == len(self.layers)
            if not is_known or not all(map(isfinite, scores)):
                raise InputError(
                    f"{self.name}: scores are of {WEIGHTS} or {INPUTS}, one finite number for each "
                    f"of {len(self.layers)} layers; got {len(scores)} of {what}"
                )

    def _check_pairs(self) -> None:
        known, expected = set(self.layers), (len(self.precisions), len(self.precisions))
        for pair in self.pairs:
            for name in sorted({pair.first, pair.second} - known):
                raise UnknownNameError(f"layer of a pair of {self.name}", name, known)
            if pair.values.shape != expected:
                raise InputError(
                    f"{self.name}: the pair of {pair.first!r} and {pair.second!r}: expected "
                    f"[B, B] = {expected}, got {pair.values.shape}"
                )

    def _refuse(self, bad: npt.NDArray[np.bool_], rule: str) -> None:
        if bad.any():
            row, column = (int(i[0]) for i in np.nonzero(bad))
            where = f"layer {self.layers[row]!r} at {self.precisions[column]}"
            raise InputError(f"{self.name}: {where} costs {self.values[row, column]}; {rule}")

    def require_complete(self) -> Self:
        """This table, if every cell has a number.

        Raises:
            InputError: If a cell is ``nan``; names the first.
        """
        self._refuse(np.isnan(self.values), "every cost must be finite")
        return self

    @property
    def column(self) -> str:
        """Name with unit, for columns and keys: ``latency_seconds``, ``weight_bytes``."""
        # The names weight_bytes and effective_bits have their unit already.
        return self.name if self.name.endswith(self.unit) else f"{self.name}_{self.unit}"

    def total(self, columns: npt.NDArray[np.intp]) -> float:
        """What an assignment costs, in the table's unit; ``columns [L]`` is a column per layer.

        The correctly rounded sum of the constant, a cell per layer and a cell per pair of layers:
        the same in any order.
        """
        cells = self.values[np.arange(len(columns)), columns].tolist()
        return fsum([self.constant, *cells, *self._between(columns)])

    @property
    def magnitude(self) -> float:
        """What no total is farther from 0 than: all numbers of the table without their signs."""
        pairs = sum(float(np.abs(pair.values).sum()) for pair in self.pairs)
        return abs(self.constant) + float(np.nansum(np.abs(self.values))) + pairs

    def total_between(self, columns: npt.NDArray[np.intp]) -> float:
        """Of what an assignment costs, the part between layers: its cells of the pairs."""
        return fsum(self._between(columns))

    def _between(self, columns: npt.NDArray[np.intp]) -> list[float]:
        # Most tables have no pairs, and this runs for every assignment that is compared.
        if not self.pairs:
            return []
        column_of = dict(zip(self.layers, columns.tolist(), strict=True))
        return [pair.values[column_of[pair.first], column_of[pair.second]] for pair in self.pairs]

    def index_of(self, precision: Precision) -> int:
        """Column of a precision.

        Raises:
            UnknownNameError: If the table has no such column.
        """
        if precision not in self.precisions:
            raise UnknownNameError("precision", str(precision), map(str, self.precisions))
        return self.precisions.index(precision)

    def select(self, precisions: Sequence[Precision]) -> Self:
        """The table with these columns only, in this order."""
        columns = [self.index_of(precision) for precision in precisions]
        return replace(
            self,
            precisions=tuple(precisions),
            values=self.values[:, columns],
            pairs=tuple(
                replace(pair, values=pair.values[np.ix_(columns, columns)]) for pair in self.pairs
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: schema_version, name, unit, layers, precisions, values, constant, pairs."""
        rows: list[list[float | None]] = self.values.tolist()
        # Python would write nan as the token NaN, which is no JSON to other readers.
        for row in np.flatnonzero(np.isnan(self.values).any(axis=1)).tolist():
            rows[row] = [None if value is None or isnan(value) else value for value in rows[row]]
        return {
            "schema_version": schema_versions.COST_TABLE,
            "name": self.name,
            "unit": self.unit,
            "layers": list(self.layers),
            "precisions": [str(precision) for precision in self.precisions],
            "values": rows,
            "constant": self.constant,
            "pairs": [pair.to_dict() for pair in self.pairs],
            # Of few tables: files without it are read by earlier versions as well.
            **({"scores": {k: list(x) for k, x in self.scores.items()}} if self.scores else {}),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing or of another kind.
        """
        require_keys(data, "cost table", ("schema_version",))
        require_version(data, "cost table", schema_versions.COST_TABLE)
        check(data, "cost_table", "cost table")
        what = f"not a cost table: {shortened(data['name'])}"
        return cls(
            data["name"],
            data["unit"],
            texts(data["layers"], f"{what}: layers"),
            tuple(map(Precision.parse, texts(data["precisions"], f"{what}: precisions"))),
            numbers(data["values"], f"{what}: values"),
            # Files of mpq 0.1 have neither.
            number(data.get("constant", 0.0), f"{what}: constant"),
            tuple(map(PairwiseCost.from_dict, data.get("pairs", ()))),
            {what: tuple(map(float, x)) for what, x in data.get("scores", {}).items()},
        )

    def to_json(self) -> str:
        """One JSON object: the keys of ``to_dict``; an empty cell is null."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such JSON.
        """
        return cls.from_dict(json_object(text, "cost table"))

    def to_pandas(self) -> "pd.DataFrame":
        """``[L, B]`` frame of ``values``: a row per layer, a column per precision.

        ``attrs`` has name, unit and constant; pairs are left out.
        """
        import pandas as pd

        columns = [str(precision) for precision in self.precisions]
        # Copied: our array is read-only, and a frame may be a view of what it is made from.
        frame = pd.DataFrame(self.values.copy(), pd.Index(self.layers, name="layer"), columns)
        frame.attrs.update(name=self.name, unit=self.unit, constant=self.constant)
        return frame

    def to_csv(self) -> str:
        """Header ``<name>:<unit>,<precision>,...``, then one line per layer; empty cells: nan.

        Raises:
            InputError: If there is a constant or a pair, which have no cell: ``to_json`` has both.
        """
        if self.constant or self.pairs:
            raise InputError(
                f"{self.name} has a constant or costs of pairs, which a CSV of layers and "
                "precisions has no place for: write JSON"
            )
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f"{self.name}:{self.unit}", *map(str, self.precisions)])
        for layer, row in zip(self.layers, self.values.tolist(), strict=True):
            # repr is the shortest text that reads back to the very same number.
            writer.writerow(
                [for_csv(layer), *("" if value != value else repr(value) for value in row)]
            )
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> Self:
        """Inverse of ``to_csv``; the first header cell is ``name:unit``.

        Raises:
            FileFormatError: If the first header cell is another one, a row is too short or too
                long, or a cell is no number.
        """
        # An empty file gets an empty heading, so that the message below speaks of it. The split is
        # from the right, because a name may have a colon and a unit has none.
        heading, *rows = list(csv.reader(StringIO(text))) or [[]]
        name, separator, unit = (heading[0] if heading else "").rpartition(":")
        if not separator:
            raise FileFormatError(
                f"not a cost table in CSV: the first header cell must be name:unit, such as "
                f"latency:seconds; got {heading[:1]}"
            )
        for row in rows:
            if len(row) != len(heading):
                raise FileFormatError(
                    f"not a cost table in CSV: {row[:1]} has {len(row)} cells, not {len(heading)}"
                )
        precisions = tuple(Precision.parse(column) for column in heading[1:])
        try:
            cells = [[number_of(cell) if cell else nan for cell in row[1:]] for row in rows]
        except ValueError as error:
            raise FileFormatError(f"not a cost table in CSV: {error}") from error
        # Without a row the array would have one axis.
        values = np.array(cells, dtype=np.float64).reshape(len(rows), len(precisions))
        return cls(name, unit, tuple(from_csv(row[0]) for row in rows), precisions, values)
