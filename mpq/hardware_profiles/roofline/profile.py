"""A device by its datasheet: peak rates, bandwidth, and which formats run as what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, Final, Self, final

import numpy as np

from mpq.errors import FileFormatError, UnknownNameError
from mpq.hardware_profiles.attention_price import AttentionPrice
from mpq.hardware_profiles.roofline.compute import PEAK, Compute, Runs, compute_from_dict
from mpq.hardware_profiles.roofline.formulas import energy_joules, latency_seconds
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.layer import Layer
from mpq.network.workload import Workload
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision

_UNITS: Final = {"latency": "seconds", "energy": "joules"}
_FLOATS: Final = ("fp16", "bf16", "fp32")
"""What products of queries with decoded keys are of: the first that runs."""
_NUMBERS: Final = (
    "memory_bandwidth_bytes_per_s",
    "bandwidth_utilisation",
    "launch_overhead_s",
    "memory_energy_j_per_byte",
    "flash_bytes",
    "ram_bytes",
    "code_bytes",
)


@final
@dataclass(frozen=True)
class Roofline:
    """A device that is estimated, as read from its JSON file.

    Args:
        name: What the device is called, such as ``nvidia-t4``.
        title: What it is, for people.
        basis: ``estimated`` or ``measured``.
        notes: What the numbers leave out, for people.
        memory_bandwidth_bytes_per_s: Peak rate between memory and arithmetic.
        launch_overhead_s: Per call of a layer.
        memory_energy_j_per_byte: Energy of moving one byte.
        compute: Name to arithmetic, with its rate and energy.
        runs: What runs; the first match counts.
        bandwidth_utilisation: Share of the bandwidth that is reached, above 0 and at most 1.
        flash_bytes: Flash of a microcontroller: what holds the weights.
        ram_bytes: What holds activations, and weights where there is no flash.
        code_bytes: Part of the flash that the runtime's code takes, whatever the network.
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
    bandwidth_utilisation: Sourced = PEAK
    flash_bytes: Sourced | None = None
    ram_bytes: Sourced | None = None
    code_bytes: Sourced | None = None

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """From a JSON object that fits ``roofline.schema.json``.

        Raises:
            FileFormatError: If a format names arithmetic that ``compute`` lacks, or that has no bit
                step wide enough for it; if arithmetic states its rate twice; if a number is not
                finite.
        """
        compute = {name: compute_from_dict(name, c) for name, c in data["compute"].items()}
        formats = tuple(map(Runs.from_dict, data["formats"]))
        # Here and not in `cost`: a missing arithmetic is an error of the file, whoever asks.
        for runs in formats:
            runs.check(compute, data["name"])
        numbers = {key: Sourced(**data[key]) for key in _NUMBERS if key in data}
        profile = cls(
            name=data["name"],
            title=data["title"],
            basis=data["basis"],
            notes=data["notes"],
            memory_bandwidth_bytes_per_s=numbers["memory_bandwidth_bytes_per_s"],
            launch_overhead_s=numbers["launch_overhead_s"],
            memory_energy_j_per_byte=numbers["memory_energy_j_per_byte"],
            compute=compute,
            runs=formats,
            # Without a source for a share, the stated rate is taken as it is.
            bandwidth_utilisation=numbers.get("bandwidth_utilisation", PEAK),
            flash_bytes=numbers.get("flash_bytes"),
            ram_bytes=numbers.get("ram_bytes"),
            code_bytes=numbers.get("code_bytes"),
        )
        for key, number in profile.numbers().items():
            if not isfinite(number.value):  # JSON as Python reads it knows NaN and Infinity
                raise FileFormatError(f"{profile.name}: {key} is {number.value}, not a number")
        return profile

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of its arithmetic."""
        return tuple(self.compute)

    @property
    def resources(self) -> tuple[str, ...]:
        """Latency and energy."""
        return tuple(_UNITS)

    @property
    def precisions(self) -> None:
        """Whatever its formats run."""

    def arithmetic(self, layer: Layer, precision: Precision) -> Compute | None:
        """What a layer runs as at a precision; ``None`` if the device cannot.

        A layer without arithmetic (an embedding) runs in every weight format that any layer does.
        """
        if precision.weight.why_simulated:
            return None  # no source says how fast a branch is added, or channels of unlike bits
        if precision.activation.why_simulated and layer.kind != "embedding":
            return None
        weight, activation = precision.weight.number.name, precision.activation.number.name
        # In the file's order: some list a format under two arithmetics, the faster one first.
        for runs in self.runs:
            fits = not runs.layer_kinds or layer.kind in runs.layer_kinds
            # A look-up multiplies nothing: neither kinds nor activations matter to it.
            if weight in runs.weights and layer.kind == "embedding":
                return self.compute[runs.compute]
            if fits and weight in runs.weights and activation in runs.activations:
                return self.compute[runs.compute]
        return None

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether any layer that computes could run at this precision."""
        if precision.weight.why_simulated or precision.activation.why_simulated:
            return False
        weight, activation = precision.weight.number.name, precision.activation.number.name
        # Whatever the `layer_kinds`: one kind of layer is enough.
        return any(weight in r.weights and activation in r.activations for r in self.runs)

    def can_run(self, layer: Layer, precision: Precision) -> bool:
        """Whether it has arithmetic for this layer at this precision."""
        return self.arithmetic(layer, precision) is not None

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` seconds or joules of one batch; ``nan`` where it cannot run a layer.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        if resource not in _UNITS:
            raise UnknownNameError("resource", resource, _UNITS)
        # Cell by cell: shapes, formats and kinds decide which arithmetic runs, if any.
        rows = [[self._price(resource, x, p, workload) for p in candidates] for x in layers]
        values = np.array(rows, dtype=np.float64).reshape(len(layers), len(candidates))
        names = tuple(layer.name for layer in layers)
        return CostTable(resource, _UNITS[resource], names, tuple(candidates), values)

    def uncertainty(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """Unknown, all ``nan``: a datasheet does not say."""
        # Asked for its shape and checks; a width of 0 would claim to be exact.
        table = self.cost(resource, layers, candidates, workload)
        return replace(table, values=np.full_like(table.values, nan))

    def attention(self, resource: str) -> AttentionPrice | None:
        """By the rate of its narrowest floating point; ``None`` where it multiplies none.

        Raises:
            UnknownNameError: If there is no such resource.
        """
        if resource not in _UNITS:
            raise UnknownNameError("resource", resource, _UNITS)
        found = self._float_products()
        if found is None:
            return None
        compute, precision = found
        if resource == "energy":
            joules = compute.joules_per_mac(precision), self.memory_energy_j_per_byte.value
            return AttentionPrice(*joules)
        rate = compute.operations_per_s(precision)
        launch = self.launch_overhead_s.value
        return AttentionPrice(2 / rate, 1 / self._bytes_per_s, launch, is_overlapping=True)

    def _float_products(self) -> tuple[Compute, Precision] | None:
        for number in _FLOATS:
            for runs in self.runs:
                if number in runs.weights and number in runs.activations:
                    return self.compute[runs.compute], Precision.parse(f"w{number}a{number}")
        return None

    @property
    def _bytes_per_s(self) -> float:
        return self.memory_bandwidth_bytes_per_s.value * self.bandwidth_utilisation.value

    def _price(
        self, resource: str, layer: Layer, precision: Precision, workload: Workload
    ) -> float:
        compute = self.arithmetic(layer, precision)
        if compute is None:
            return nan
        if resource == "latency":
            return latency_seconds(
                workload.of(layer),
                precision,
                workload.batch_size,
                operations_per_s=compute.operations_per_s(precision),
                bandwidth_bytes_per_s=self._bytes_per_s,
                launch_overhead_s=self.launch_overhead_s.value,
            )
        return energy_joules(
            workload.of(layer),
            precision,
            workload.batch_size,
            energy_j_per_mac=compute.joules_per_mac(precision),
            energy_j_per_byte=self.memory_energy_j_per_byte.value,
        )

    def numbers(self) -> dict[str, Sourced]:
        """Every number of the profile with its unit in the name, for people."""
        # Optional memories are fields too, so that what a profile lacks is None here.
        own = {key: getattr(self, key) for key in _NUMBERS}
        found = {key: number for key, number in own.items() if number is not None}
        for name, compute in self.compute.items():
            found |= {f"{name}.{key}": number for key, number in compute.numbers().items()}
        return found
