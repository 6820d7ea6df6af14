"""A device by its datasheet: peak rates, bandwidth, and which formats run as what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Final, Self, final

import numpy as np

from mpq.cost_table import CostTable
from mpq.errors import FileFormatError, UnknownNameError
from mpq.hardware_profiles.roofline import energy_joules, latency_seconds
from mpq.hardware_profiles.sourced import Sourced
from mpq.hardware_profiles.workload import Workload
from mpq.layer import Layer
from mpq.precision import Precision

_UNITS: Final = {"latency": "seconds", "energy": "joules"}


@final
@dataclass(frozen=True)
class Compute:
    """One kind of arithmetic that a device has.

    Args:
        peak_operations_per_s: Dense; a multiply-accumulate is two operations.
        energy_j_per_mac: Energy of one multiply-accumulate.
    """

    peak_operations_per_s: Sourced
    energy_j_per_mac: Sourced


@final
@dataclass(frozen=True)
class Runs:
    """Which number formats a device runs, and as which arithmetic.

    Args:
        weights: Number formats of the weight.
        activations: Number formats of the input.
        compute: The arithmetic, a key of ``Profile.compute``.
        layer_kinds: Kinds of layers; empty: all.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    compute: str
    layer_kinds: tuple[str, ...]


@final
@dataclass(frozen=True)
class Roofline:
    """A device that is estimated, as read from its JSON file.

    Args:
        name: Such as ``nvidia-t4``.
        title: What it is, for people.
        basis: ``estimated`` or ``measured``.
        notes: What is left out.
        memory_bandwidth_bytes_per_s: Between memory and arithmetic.
        launch_overhead_s: Per call of a layer.
        memory_energy_j_per_byte: Energy of moving one byte.
        compute: Arithmetic by name.
        runs: What runs; the first match counts.
    """

    name: str
    title: str
    basis: str
    notes: str
    memory_bandwidth_bytes_per_s: Sourced
    launch_overhead_s: Sourced
    memory_energy_j_per_byte: Sourced
    compute: Mapping[str, Compute]
    runs: tuple[Runs, ...]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """From a JSON object that fits ``roofline.schema.json``.

        Raises:
            FileFormatError: If a format names arithmetic that ``compute`` lacks.
        """
        compute = {
            name: Compute(Sourced(**c["peak_operations_per_s"]), Sourced(**c["energy_j_per_mac"]))
            for name, c in data["compute"].items()
        }
        formats = tuple(
            Runs(
                tuple(entry["weights"]),
                tuple(entry["activations"]),
                entry["compute"],
                tuple(entry.get("layer_kinds", ())),
            )
            for entry in data["formats"]
        )
        for runs in formats:
            if runs.compute not in compute:
                raise FileFormatError(
                    f"{data['name']}: formats name the arithmetic {runs.compute!r}, which "
                    f"`compute` lacks (it has {', '.join(compute)})"
                )
        return cls(
            name=data["name"],
            title=data["title"],
            basis=data["basis"],
            notes=data["notes"],
            memory_bandwidth_bytes_per_s=Sourced(**data["memory_bandwidth_bytes_per_s"]),
            launch_overhead_s=Sourced(**data["launch_overhead_s"]),
            memory_energy_j_per_byte=Sourced(**data["memory_energy_j_per_byte"]),
            compute=compute,
            runs=formats,
        )

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of its arithmetic."""
        return tuple(self.compute)

    @property
    def resources(self) -> tuple[str, ...]:
        """Latency and energy."""
        return tuple(_UNITS)

    def arithmetic(self, layer: Layer, precision: Precision) -> Compute | None:
        """What a layer runs as at a precision; ``None`` if the device cannot.

        A layer without arithmetic (an embedding) runs in every weight format that any layer does.
        """
        weight, activation = precision.weight.number.name, precision.activation.number.name
        for runs in self.runs:
            fits = not runs.layer_kinds or layer.kind in runs.layer_kinds
            if weight in runs.weights and layer.kind == "embedding":
                return self.compute[runs.compute]
            if fits and weight in runs.weights and activation in runs.activations:
                return self.compute[runs.compute]
        return None

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether any layer that computes could run at this precision."""
        weight, activation = precision.weight.number.name, precision.activation.number.name
        return any(weight in r.weights and activation in r.activations for r in self.runs)

    def can_run(self, layer: Layer, precision: Precision) -> bool:
        """Whether it has arithmetic for this layer at this precision."""
        return self.arithmetic(layer, precision) is not None

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        choices: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` seconds or joules of one batch; ``nan`` where it cannot run a layer.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        if resource not in _UNITS:
            raise UnknownNameError("resource", resource, _UNITS)
        rows = [[self._price(resource, x, p, workload) for p in choices] for x in layers]
        values = np.array(rows, dtype=np.float64).reshape(len(layers), len(choices))
        names = tuple(layer.name for layer in layers)
        return CostTable(resource, _UNITS[resource], names, tuple(choices), values)

    def uncertainty(
        self,
        resource: str,
        layers: Sequence[Layer],
        choices: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """Unknown, all ``nan``: a datasheet does not say."""
        table = self.cost(resource, layers, choices, workload)
        return replace(table, values=np.full_like(table.values, nan))

    def _price(
        self, resource: str, layer: Layer, precision: Precision, workload: Workload
    ) -> float:
        compute = self.arithmetic(layer, precision)
        if compute is None:
            return nan
        if resource == "latency":
            return latency_seconds(
                layer,
                precision,
                workload.batch_size,
                peak_operations_per_s=compute.peak_operations_per_s.value,
                bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s.value,
                launch_overhead_s=self.launch_overhead_s.value,
            )
        return energy_joules(
            layer,
            precision,
            workload.batch_size,
            energy_j_per_mac=compute.energy_j_per_mac.value,
            energy_j_per_byte=self.memory_energy_j_per_byte.value,
        )

    def numbers(self) -> dict[str, Sourced]:
        """Every number of the profile with its unit in the name, for people."""
        found = {
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            "launch_overhead_s": self.launch_overhead_s,
            "memory_energy_j_per_byte": self.memory_energy_j_per_byte,
        }
        for name, compute in self.compute.items():
            found[f"{name}.peak_operations_per_s"] = compute.peak_operations_per_s
            found[f"{name}.energy_j_per_mac"] = compute.energy_j_per_mac
        return found
