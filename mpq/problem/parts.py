"""Rows of a problem that are parts of layers: of weights, or blocks of what layers read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.json_arrays import columns as whole_numbers
from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import merge_ties
from mpq.problem.cost_table import CostTable
from mpq.problem.layer_parts import LayerParts, read_layer_parts
from mpq.quantization.channel_bits import OUTPUTS
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """Which rows ``R`` of a problem are parts of which layers.

    Args:
        layers: ``[L]`` names, in the network's order; the rows of a layer are neighbours.
        divided: Layer name to its parts, all of one axis; a layer that is not in it is one row.
        owners: Layers that share the weight of another one, and which: they have no row.
        code_bits: What saying which part has which precision takes, at the most.
        tied: Layers that are as many parts, which have the same bits one by one.

    Raises:
        InputError: If they contradict each other.
    """

    layers: tuple[str, ...]
    divided: Mapping[str, LayerParts] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    code_bits: int = 0
    tied: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        known = set(self.layers)
        if len(known) != len(self.layers):
            raise InputError("parts: a layer is named twice")
        named = {*self.divided, *self.owners, *self.owners.values()}
        named |= {name for tie in self.tied for name in tie}
        for name in sorted(named - known):
            raise UnknownNameError("layer with parts", name, known)
        if not self.owners.keys().isdisjoint({*self.owners.values(), *self.divided}):
            raise InputError("parts: a layer that shares another one's weight has none of its own")
        if len({parts.axis for parts in self.divided.values()}) > 1:
            raise InputError("parts: all are of one axis")
        for tie in self.tied:
            if len({self._count(name) for name in tie}) > 1:
                raise InputError(f"parts of {', '.join(tie)}: tied layers have as many parts")

    @property
    def axis(self) -> str:
        """What parts are of, as in ``Split.axis``."""
        return next((parts.axis for parts in self.divided.values()), OUTPUTS)

    @cached_property
    def counts(self) -> Columns:
        """``[L]`` rows of every layer."""
        return np.array([self._count(name) for name in self.layers], dtype=np.intp)

    def _count(self, name: str) -> int:
        if name in self.owners:
            return 0
        return self.divided[name].count if name in self.divided else 1

    @cached_property
    def starts(self) -> Columns:
        """``[L]`` the first row of every layer."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.intp)

    @cached_property
    def shares(self) -> Array:
        """``[R]`` the share of its layer's channels, or weights, that a row has."""
        found = [
            self.divided[name].shares if name in self.divided else np.ones(count)
            for name, count in zip(self.layers, self.counts.tolist(), strict=True)
        ]
        return np.concatenate(found)

    @cached_property
    def row_names(self) -> tuple[str, ...]:
        """``[R]``: a layer's name, or with the number of the part, ``conv1[3]``."""
        return tuple(
            f"{name}[{part}]" if name in self.divided else name
            for name, count in zip(self.layers, self.counts.tolist(), strict=True)
            for part in range(count)
        )

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Layers that share a weight, and so all of its parts, or are tied part by part."""
        shared = [(owner, name) for name, owner in self.owners.items()]
        return merge_ties([*shared, *self.tied], self.layers)

    @property
    def row_ties(self) -> tuple[tuple[str, ...], ...]:
        """Rows that have the same bits."""
        names = self.row_names
        by_layer = [[names[self.rows_of(name)] for name in tie] for tie in self.tied]
        return tuple(rows for tie in by_layer for rows in zip(*tie, strict=True))

    def rows_of(self, name: str) -> slice:
        """The rows of a layer; of one that shares a weight those of its owner."""
        place = self.layers.index(self.owners.get(name, name))
        start = int(self.starts[place])
        return slice(start, start + int(self.counts[place]))

    def spread(self, values: Array) -> Array:
        """``[R, B]`` from ``[L, B]``: every row gets its share of what its layer has.

        What a layer has that shares another one's weight goes to that.
        """
        owned = np.array(values, dtype=np.float64)
        for name, owner in self.owners.items():
            owned[self.layers.index(owner)] += owned[self.layers.index(name)]
        return np.repeat(owned, self.counts, axis=0) * self.shares[:, None]

    def table(self, table: CostTable, constant: float = 0.0) -> CostTable:
        """``[R, B]`` of a cost ``[L, B]`` that is a sum over channels.

        Args:
            table: Of layers, without costs of pairs.
            constant: What saying which part has which precision costs.
        """
        values, names = self.spread(table.values), self.row_names
        whole = table.constant + constant
        return replace(table, layers=names, values=values, constant=whole, scores={})

    def by_layer(self, cells: Array) -> Array:
        """``[L]`` sums of ``[R]`` over the rows of every layer."""
        sums = np.concatenate([[0.0], np.cumsum(cells)])
        return np.asarray(sums[self.starts + self.counts] - sums[self.starts])

    def precisions_of(
        self, columns: Columns, precisions: Sequence[Precision]
    ) -> dict[str, Precision]:
        """Layer name to precision of a choice ``[R]`` among ``[B]``."""
        return {name: self._precision(name, columns, precisions) for name in self.layers}

    def _precision(self, name: str, columns: Columns, precisions: Sequence[Precision]) -> Precision:
        owner, chosen = self.owners.get(name, name), columns[self.rows_of(name)]
        if (chosen == chosen[0]).all():
            return precisions[int(chosen[0])]
        return self.divided[owner].mixed(chosen, precisions)

    def columns_of(
        self, chosen: Mapping[str, Precision], precisions: Sequence[Precision]
    ) -> Columns:
        """``[R]``, the inverse of ``precisions_of``.

        Raises:
            UnknownNameError: If a precision is none of those.
        """
        places = {precision: column for column, precision in enumerate(precisions)}
        found = np.zeros(int(self.counts.sum()), dtype=np.intp)
        for name in self.layers:
            if name not in self.owners:
                found[self.rows_of(name)] = self._columns(name, chosen[name], places)
        return found

    def _columns(self, name: str, precision: Precision, places: Mapping[Precision, int]) -> Columns:
        if name in self.divided:
            return self.divided[name].columns(precision, places)
        if precision not in places:
            raise UnknownNameError("precision", str(precision), map(str, places))
        return np.array([places[precision]])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {name: parts.to_dict() for name, parts in self.divided.items()}
        of = {
            key: {name: each[key] for name, each in told.items() if key in each}
            for key in ("of_channels", "blocks", "inputs", "examples")
        }
        return {
            "layers": list(self.layers),
            "of_channels": of["of_channels"],
            "blocks": of["blocks"],
            "owners": dict(self.owners),
            "code_bits": self.code_bits,
            # Files without them are read by earlier versions as well.
            **({} if self.axis == OUTPUTS else {"axis": self.axis, "inputs": of["inputs"]}),
            **({"examples": next(iter(of["examples"].values()))} if of["examples"] else {}),
            **({"tied": list(map(list, self.tied))} if self.tied else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a part is no whole number.
            InputError: If they contradict each other.
        """
        axis, divided = data.get("axis", OUTPUTS), dict[str, LayerParts]()
        for name, cells in data["of_channels"].items():
            units = whole_numbers(cells, f"parts: {name}")
            of = {key: data[key][name] for key in ("blocks", "inputs") if name in data.get(key, ())}
            try:
                divided[name] = read_layer_parts(axis, units, data.get("examples", ()), **of)
            except InputError as error:
                raise InputError(f"parts of {name!r}: {error}") from error
        tied = tuple(map(tuple, data.get("tied", ())))
        return cls(tuple(data["layers"]), divided, data["owners"], data["code_bits"], tied)
