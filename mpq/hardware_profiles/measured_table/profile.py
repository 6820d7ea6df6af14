"""A device by what was measured on it: seconds per shape, format and batch size."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from typing import Any, Final, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support import schema_versions
from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles.measured_table.conversion import Conversion, conversion_pairs
from mpq.hardware_profiles.measured_table.csv_file import entries_from_csv, entries_to_csv
from mpq.hardware_profiles.measured_table.entry import Entry, Key
from mpq.hardware_profiles.measured_table.interpolation import MIN_ENTRIES, Family
from mpq.hardware_profiles.measured_table.overhead import FixedPart
from mpq.hardware_profiles.measured_table.shape import Shape
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.layer import Layer
from mpq.network.workload import Workload
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision

_UNITS: Final = {"latency": "seconds", "energy": "joules"}
_FEW: Final = 24
"""Entries that are all shown; of more, ``numbers`` gives the range."""


@final
@dataclass(frozen=True)
class MeasuredTable:
    """A device that was measured, shape by shape.

    A shape that was measured costs what was measured, at the precisions that it was measured at:
    it does not run at others. Any other shape is interpolated by ``ShapeRule``, within the range of
    the measured ones of its family (kind, kernel, grouping), at the same precision and batch size;
    outside of that range it is refused, unless ``allow_extrapolation``. Times are per call; a
    layer's calls add up.

    Args:
        name: What the device is called, such as ``my-board``.
        title: What it is, for people.
        notes: What the numbers leave out, for people.
        source: Source of the entries that have none of their own.
        machine: Description, library versions, threads, as text by name.
        entries: At most one per shape, batch size and precision.
        conversions: Between number formats of neighbouring layers; empty: they cost nothing.
        allow_extrapolation: Whether shapes outside the measured range are priced by the same
            formula; their uncertainty is unknown.
        fixed_parts: What runs besides these layers in every network.
        basis: ``measured``, or ``estimated`` where a simulator made the numbers.

    Raises:
        InputError: If there is no entry, one comes twice, or only some have an energy.
    """

    name: str
    title: str
    notes: str
    source: str
    machine: Mapping[str, str]
    entries: tuple[Entry, ...]
    conversions: tuple[Conversion, ...] = ()
    allow_extrapolation: bool = False
    fixed_parts: tuple[FixedPart, ...] = ()
    basis: str = "measured"

    def __post_init__(self) -> None:
        if not self.entries:
            raise InputError(f"{self.name}: a measured table has at least 1 entry")
        if self.basis not in ("measured", "estimated"):
            raise InputError(f"{self.name}: basis is measured or estimated; got {self.basis!r}")
        _refuse_twice(self.name, "entry", [(entry.key, entry) for entry in self.entries])
        _refuse_twice(self.name, "conversion", [(c.key, c.key) for c in self.conversions])
        energies = [entry.energy_joules for entry in self.entries]
        energies += [part.energy_joules for part in self.fixed_parts]
        # All or none: a sum over layers of which some have no joules would be too small unnoticed.
        num_known = sum(energy is not None for energy in energies)
        if 0 < num_known < len(energies):
            raise InputError(
                f"{self.name}: {num_known} of {len(energies)} entries and fixed parts have "
                "energy_joules; give it for all or for none"
            )

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """What was measured, in the order of the entries."""
        return tuple(dict.fromkeys(entry.precision for entry in self.entries))

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the precisions."""
        return tuple(map(str, self.precisions))

    @property
    def resources(self) -> tuple[str, ...]:
        """Latency, and energy if the entries have it."""
        # One tells for all, as `__post_init__` has checked.
        has_energy = self.entries[0].energy_joules is not None
        return ("latency", "energy") if has_energy else ("latency",)

    @cached_property
    def _by_key(self) -> Mapping[Key, Entry]:
        return {entry.key: entry for entry in self.entries}

    @cached_property
    def _runs(self) -> Mapping[Shape | str, set[Precision]]:
        """Precisions by shape, and by family."""
        found: dict[Shape | str, set[Precision]] = {}
        for entry in self.entries:
            # Both in one mapping: a family is a string and never equal to a shape.
            found.setdefault(entry.shape, set()).add(entry.precision)
            found.setdefault(entry.shape.family, set()).add(entry.precision)
        return found

    @cached_property
    def _families(self) -> Mapping[tuple[str, Precision, int, str], Family]:
        members: dict[tuple[str, Precision, int], list[Entry]] = {}
        for entry in self.entries:
            key = entry.shape.family, entry.precision, entry.batch_size
            members.setdefault(key, []).append(entry)
        return {
            # Fits are made when first asked for, so that tables of measured shapes never fit.
            (*key, resource): Family(entries, resource)
            for key, entries in members.items()
            for resource in self.resources
        }

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether anything was measured at this precision."""
        return precision in self.precisions

    def can_run(self, layer: Layer, precision: Precision) -> bool:
        """Whether its shape was measured at this precision; if never measured, its family."""
        return self._can_run(Shape.of(layer), precision)

    def _can_run(self, shape: Shape, precision: Precision) -> bool:
        # A measured shape does not fall back to its family: a precision that failed for it, and so
        # has no entry, must not be interpolated from shapes for which it worked.
        return precision in self._runs.get(shape, self._runs.get(shape.family, set()))

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` seconds or joules of one batch; ``nan`` where it cannot run a layer.

        Latencies have pairs (conversions) and a constant (``fixed_parts``).

        Raises:
            UnknownNameError: If the table has no such resource.
            InputError: If a layer that it could run was not measured and cannot be interpolated,
                or a conversion is missing.
        """
        # The constant is of costs alone: fixed parts have no interval.
        table = self._table(resource, layers, candidates, workload, column=0)
        table = replace(table, constant=sum(part.value(resource) for part in self.fixed_parts))
        # Conversions have seconds only: what they take of energy is not known.
        if resource != "latency" or not self.conversions:
            return table
        known = {conversion.key: conversion for conversion in self.conversions}
        # Conversions are per element, of which a workload's tokens change the number.
        sized = [workload.of(layer) for layer in layers]
        pairs = conversion_pairs(known, sized, candidates, workload.batch_size, self.can_run)
        return replace(table, pairs=pairs)

    def uncertainty(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` half width of the 95 % interval, in the cost's unit; ``nan``: unknown.

        Of a measured shape that of its entry; of an interpolated one what 95 % of the family's
        entries stay below when each is predicted from the others; of an extrapolated one unknown.

        Raises:
            InputError: As ``cost`` does.
        """
        return self._table(resource, layers, candidates, workload, column=1)

    def _table(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
        column: int,
    ) -> CostTable:
        """Costs (column 0) or their half widths (column 1)."""
        if resource not in self.resources:
            raise UnknownNameError(f"resource of {self.name}", resource, self.resources)
        values = np.full((len(layers), len(candidates)), nan)
        for row, layer in enumerate(layers):
            priced = self._priced(resource, workload.of(layer), candidates, workload.batch_size)
            values[row] = priced[:, column]
        names = tuple(layer.name for layer in layers)
        return CostTable(resource, _UNITS[resource], names, tuple(candidates), values)

    def _priced(
        self, resource: str, layer: Layer, candidates: Sequence[Precision], batch_size: int
    ) -> npt.NDArray[np.float64]:
        """``[B, 2]`` cost of a layer's calls and its half width."""
        shape = Shape.of(layer)
        # Not a row of nan: that would say that the device cannot run the layer, and nobody knows.
        if shape.family not in self._runs:
            families = sorted(key for key in self._runs if isinstance(key, str))
            raise InputError(
                f"{self.name}: layer {layer.name!r} is a {shape.family}, of which nothing was "
                f"measured (there are: {', '.join(families)}); measure it, or leave the layer out "
                "(exclude)"
            )
        prices = np.full((len(candidates), 2), nan)
        for row, candidate in enumerate(candidates):
            key = (shape, batch_size, candidate)
            if key in self._by_key:
                entry = self._by_key[key]
                prices[row] = entry.value(resource), entry.half_width(resource)
            elif self._can_run(shape, candidate):
                prices[row] = self._interpolated(resource, layer.name, key)
        # Half widths too: calls share one measurement, so that its error adds up in full.
        return layer.calls * prices

    def _interpolated(self, resource: str, name: str, key: Key) -> tuple[float, float]:
        shape, batch_size, candidate = key
        where = (
            f"{self.name}: layer {name!r} ({shape}) at {candidate} was not measured at batch size"
        )
        where = f"{where} {batch_size}, and"
        # Batch sizes are families of their own: times are no multiples of the batch.
        family = self._families.get((shape.family, candidate, batch_size, resource))
        if family is None:
            sizes = sorted({e.batch_size for e in self.entries if e.precision == candidate})
            raise InputError(
                f"{where} neither was any {shape.family}; batch sizes measured at {candidate}: "
                f"{', '.join(map(str, sizes))}"
            )
        # Refused also where extrapolation is allowed: this is about the fit, not its range.
        if len(family.entries) < MIN_ENTRIES:
            raise InputError(
                f"{where} to interpolate takes {MIN_ENTRIES} measured shapes of {shape.family}; "
                f"there are {len(family.entries)}: measure it, or leave the layer out (exclude)"
            )
        outside = family.rule.outside(shape)
        if outside and not self.allow_extrapolation:
            raise InputError(
                f"{where} its size is outside the measured {shape.family}: {'; '.join(outside)}. "
                "Measure it, leave the layer out (exclude), or allow it: "
                '"allow_extrapolation": true in the profile (import-table --allow-extrapolation)'
            )
        value = family.rule.predict(shape)
        # Left-out errors are those of shapes within the range, and tell nothing beyond it.
        return value, nan if outside else value * family.relative_half_width

    def attention(self, resource: str) -> None:
        """Nothing of it was measured."""

    def numbers(self) -> Mapping[str, Sourced]:
        """Every number with its unit in the name; of many entries, range and count by precision."""
        found: dict[str, Sourced] = {}
        # Published tables have an entry for every shape and format, more than a screen takes.
        if len(self.entries) <= _FEW:
            for entry in self.entries:
                for resource in self.resources:
                    number = Sourced(entry.value(resource), entry.source or self.source)
                    found[f"{entry}: {resource}_{_UNITS[resource]}"] = number
        else:
            for candidate in self.precisions:
                found |= self._summary(candidate)
        for part in self.fixed_parts:
            found[f"{part.name}.latency_seconds"] = Sourced(part.latency_seconds, part.source)
        for c in self.conversions:
            name = f"{c.from_format} to {c.to_format}"
            found[f"{name}.seconds_per_call"] = Sourced(c.seconds_per_call, c.source)
            found[f"{name}.seconds_per_element"] = Sourced(c.seconds_per_element, c.source)
        return found

    def _summary(self, candidate: Precision) -> dict[str, Sourced]:
        mine = [entry for entry in self.entries if entry.precision == candidate]
        found = {f"{candidate}.entries": Sourced(len(mine), self.source)}
        for resource in self.resources:
            values = [entry.value(resource) for entry in mine]
            unit = _UNITS[resource]
            found[f"{candidate}.least_{resource}_{unit}"] = Sourced(min(values), self.source)
            found[f"{candidate}.largest_{resource}_{unit}"] = Sourced(max(values), self.source)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: fits ``measured.schema.json``."""
        return {
            "schema_version": schema_versions.MEASURED_TABLE,
            "model": "measured",
            "name": self.name,
            "title": self.title,
            "basis": self.basis,
            "notes": self.notes,
            "source": self.source,
            "machine": dict(self.machine),
            "allow_extrapolation": self.allow_extrapolation,
            "entries": [entry.to_dict() for entry in self.entries],
            "conversions": [conversion.to_dict() for conversion in self.conversions],
            "fixed_parts": [part.to_dict() for part in self.fixed_parts],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Inverse of ``to_dict``, for an object that fits ``measured.schema.json``.

        Raises:
            InputError: If a number makes no sense, or an entry comes twice.
        """
        return cls(
            name=data["name"],
            title=data["title"],
            notes=data["notes"],
            source=data["source"],
            machine=data["machine"],
            entries=tuple(map(Entry.from_dict, data["entries"])),
            conversions=tuple(Conversion(**c) for c in data.get("conversions", ())),
            allow_extrapolation=data.get("allow_extrapolation", False),
            fixed_parts=tuple(FixedPart(**part) for part in data.get("fixed_parts", ())),
            basis=data.get("basis", "measured"),
        )

    def to_json(self) -> str:
        """The file that ``load_device`` reads."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def to_csv(self) -> str:
        """The entries only; see ``from_csv``."""
        return entries_to_csv(self.entries)

    @classmethod
    def from_csv(cls, text: str, name: str) -> Self:
        """A table of a CSV's entries; columns are described in ``csv_file``.

        Args:
            text: Everything that the file holds.
            name: What the device is called.

        Raises:
            FileFormatError: If a column is missing, unknown or without a unit, or a cell is
                malformed; names line and column.
            InputError: If a number makes no sense, or an entry comes twice.
        """
        return cls(
            name=name,
            title=f"{name} (a table of measurements)",
            notes="What the table leaves out is not known.",
            source=f"CSV table {name}; given by the user",
            machine={},
            entries=entries_from_csv(text),
        )


def _refuse_twice(name: str, what: str, keyed: Sequence[tuple[Any, Any]]) -> None:
    seen = set()
    for key, shown in keyed:
        if key in seen:
            raise InputError(
                f"{name}: the {what} {shown} is there twice; keep one, or merge them first"
            )
        seen.add(key)
