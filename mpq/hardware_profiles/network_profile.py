"""A profile of one network, measured layer by layer and as a whole on one machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Self, final

import numpy as np

from mpq._support import schema_versions
from mpq.errors import FileFormatError, InputError, MismatchError, UnknownNameError
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.layer import Layer
from mpq.network.workload import Workload
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import ORIGINAL, Precision


@final
@dataclass(frozen=True, eq=False)
class NetworkProfile:
    """Seconds of one network's layers, as ``mpq profile`` writes them.

    Args:
        name: Name of the profile, as its file is called.
        title: Network, runtime and machine, for people.
        notes: What the numbers leave out, for people.
        signatures: ``[L]`` see ``Layer.signature``: which network this is.
        batch_size: How many examples one run had.
        latency: ``[L, B]`` seconds of one run, conversions between neighbours as pairs, what the
            network takes besides as constant; corrected by the whole networks that were measured.
        half_width: ``[L, B]`` half of the 95 % interval.
        machine: Processor, versions, runtime and its options.
        record: What was measured: medians, intervals, whole networks, the correction; ``command``
            has the words of the command, where it was one, ``sources`` what that loaded.
    """

    name: str
    title: str
    notes: str
    signatures: tuple[str, ...]
    batch_size: int
    latency: CostTable
    half_width: CostTable
    machine: Mapping[str, str]
    record: Mapping[str, Any]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """From a JSON object that fits ``network.schema.json``.

        Raises:
            FileFormatError: If a table or the list of layers does not fit the others.
        """
        latency = CostTable.from_dict(data["latency"])
        half_width = CostTable.from_dict(data["half_width"])
        same = (latency.layers, latency.precisions) == (half_width.layers, half_width.precisions)
        # From the right: names of layers may have spaces, kinds and shapes have none.
        names = tuple(text.rsplit(" ", 2)[0] for text in data["signatures"])
        units = {latency.unit, half_width.unit}
        if not same or names != latency.layers or units != {"seconds"}:
            raise FileFormatError(
                f"{data['name']}: latency, half_width and signatures must have the same layers, in "
                "seconds"
            )
        # A comparison with nan is false, so that empty cells pass these two checks.
        if (latency.values < 0).any():
            raise FileFormatError(f"{data['name']}: a latency is negative")
        if (half_width.values < 0).any():
            raise FileFormatError(f"{data['name']}: a half width is negative")
        # Both tables must be empty in the same cells: a cost without its interval is half a cell.
        able = ~np.isnan(latency.values)
        if (able != ~np.isnan(half_width.values)).any() or not able.any(axis=1).all():
            raise FileFormatError(
                f"{data['name']}: every layer needs a latency at one precision at least, and "
                "a half width wherever it has a latency"
            )
        return cls(
            data["name"], data["title"], data["notes"], tuple(data["signatures"]),
            data["batch_size"], latency, half_width, data["machine"], data["record"],
        )  # fmt: skip

    def to_json(self) -> str:
        """JSON as ``mpq/hardware_profiles/network.schema.json`` describes it."""
        data = {
            "schema_version": schema_versions.NETWORK_PROFILE,
            "model": "network",
            "name": self.name,
            "title": self.title,
            "notes": self.notes,
            "signatures": list(self.signatures),
            "batch_size": self.batch_size,
            "latency": self.latency.to_dict(),
            "half_width": self.half_width.to_dict(),
            "machine": dict(self.machine),
            "record": dict(self.record),
        }
        return json.dumps(data, indent=1) + "\n"

    @property
    def basis(self) -> str:
        """Measured."""
        return "measured"

    @property
    def formats(self) -> tuple[str, ...]:
        """The precisions that were measured."""
        return tuple(map(str, self.latency.precisions))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that were measured."""
        return self.latency.precisions

    @property
    def resources(self) -> tuple[str, ...]:
        """Latency."""
        return ("latency",)

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether any layer was measured at this precision."""
        if precision not in self.latency.precisions:
            return False
        return not np.isnan(self.latency.values[:, self.latency.index_of(precision)]).all()

    def can_run(self, layer: Layer, precision: Precision) -> bool:
        """Whether this layer was measured at this precision."""
        # Asked before `index_of`, which refuses what the table lacks: here that is an answer.
        if precision not in self.latency.precisions or layer.name not in self.latency.layers:
            return False
        row = self.latency.layers.index(layer.name)
        return not np.isnan(self.latency.values[row, self.latency.index_of(precision)])

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` seconds of one batch; ``nan`` where a layer was not measured.

        Layers that were measured and are not asked for count as unquantized, in the constant.

        Raises:
            UnknownNameError: If the resource is not latency.
            MismatchError: If a layer belongs to another network.
            InputError: If the workload is another one, or a layer that is not asked for was not
                measured unquantized.
        """
        if resource != "latency":
            raise UnknownNameError("resource", resource, self.resources)
        self._check(layers, workload)
        kept = [layer.name for layer in layers]
        return _chosen(self._without_others(kept), kept, candidates)

    def uncertainty(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` half of the 95 % interval of a layer alone, in seconds."""
        table = self.cost(resource, layers, candidates, workload)
        # A table of widths has no total: neither a constant nor pairs have an interval of their
        # own.
        widths = replace(self.half_width, constant=0.0, pairs=())
        return _chosen(widths, list(table.layers), candidates)

    def attention(self, resource: str) -> None:
        """Nothing of it was measured."""

    def numbers(self) -> Mapping[str, Sourced]:
        """Uniform networks' seconds, the constant, and the correction's error."""
        source = "measured by mpq profile"
        found = {"batch_size": Sourced(self.batch_size, "as asked")}
        found["unquantizable_rest_s"] = Sourced(self.latency.constant, source)
        for precision, column in zip(
            self.latency.precisions, self.latency.values.T.tolist(), strict=True
        ):
            found[f"layers.{precision}.latency_s"] = Sourced(float(np.nansum(column)), source)
        for label, agreement in self.record.get("agreement", {}).items():
            told = f"{agreement['num_networks']} whole networks that were not used for it"
            for key in ("spearman", "median_absolute_error"):
                found[f"{label}.{key}"] = Sourced(agreement[key], told)
        return found

    def _check(self, layers: Sequence[Layer], workload: Workload) -> None:
        known = set(self.signatures)
        for layer in layers:
            # By the signature, not the name: layers called alike are in many networks.
            if layer.signature not in known:
                raise MismatchError(
                    f"{self.name} was measured for another network: it has no layer "
                    f"{layer.signature!r}; run `mpq profile` for this one"
                )
        # Compared whole: tokens and phases change what was measured, too.
        if workload != Workload(self.batch_size):
            raise InputError(
                f"{self.name} was measured for a batch of {self.batch_size}, as traced; got "
                f"{workload}: measure again, or ask for what was measured"
            )

    def _without_others(self, kept: Sequence[str]) -> CostTable:
        """The table with all other layers unquantized, in the constant and in their neighbours."""
        table = self.latency
        others = [name for name in table.layers if name not in set(kept)]
        if not others:
            return table
        # Layers that a search leaves out run unquantized, which takes time as well.
        column = table.index_of(ORIGINAL) if ORIGINAL in table.precisions else None
        rows = [table.layers.index(name) for name in others]
        if column is None or np.isnan(table.values[rows, column]).any():
            raise InputError(
                f"{self.name}: layers that stay as they are ({', '.join(others[:5])}) were not "
                f"measured at {ORIGINAL}; measure again with it among the precisions"
            )
        # A table's values are read-only.
        values, constant = table.values.copy(), table.constant
        constant += float(table.values[rows, column].sum())
        pairs = []
        for pair in table.pairs:
            ends = pair.first in others, pair.second in others
            # A pair with one fixed end depends on the other layer alone: it joins that layer's row.
            if ends == (False, False):
                pairs.append(pair)
            elif ends == (True, True):
                constant += float(pair.values[column, column])
            elif ends[0]:
                values[table.layers.index(pair.second)] += pair.values[column]
            else:
                values[table.layers.index(pair.first)] += pair.values[:, column]
        return replace(table, values=values, constant=constant, pairs=tuple(pairs))


def _chosen(table: CostTable, layers: Sequence[str], candidates: Sequence[Precision]) -> CostTable:
    """Rows and columns in the order asked for; ``nan`` for precisions that the table lacks."""
    rows = [table.layers.index(name) for name in layers]
    columns = [table.precisions.index(p) if p in table.precisions else None for p in candidates]
    # A precision that was not measured is no error: nan says that it does not run.
    values = np.full((len(layers), len(candidates)), nan)
    for place, column in enumerate(columns):
        if column is not None:
            values[:, place] = table.values[rows, column]
    pairs = tuple(
        PairwiseCost(pair.first, pair.second, _square(pair.values, columns)) for pair in table.pairs
    )
    return CostTable(
        table.name, table.unit, tuple(layers), tuple(candidates), values, table.constant, pairs
    )


def _square(values: Any, columns: Sequence[int | None]) -> Any:
    """``[B, B]`` of these columns; 0 for precisions that cannot run anyway."""
    # Zeros, as pairs must be finite; the layers' own nan keeps these precisions out.
    found = np.zeros((len(columns), len(columns)))
    known = [place for place, column in enumerate(columns) if column is not None]
    taken = [column for column in columns if column is not None]
    found[np.ix_(known, known)] = values[np.ix_(taken, taken)]
    return found
