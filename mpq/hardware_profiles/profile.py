"""A device: what it can run, how fast, and what that costs. Data with a source for every number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from mpq.cost_table import CostTable
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles.linear import LINEAR_RESOURCES, linear_cost
from mpq.hardware_profiles.roofline import energy_joules, latency_seconds
from mpq.layer import Layer
from mpq.precision import Precision

SCHEMA_VERSION = 1


@final
@dataclass(frozen=True)
class Sourced:
    """A number and where it comes from."""

    value: float
    source: str


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
class Profile:
    """A device, as read from its JSON file.

    Args:
        name: Such as ``nvidia-t4``.
        title: What it is, for people.
        basis: ``estimated`` or ``measured``.
        notes: What is left out.
        memory_bandwidth_bytes_per_s: Between memory and arithmetic.
        launch_overhead_s: Per call of a layer.
        memory_energy_j_per_byte: Energy of moving one byte.
        compute: Arithmetic by name.
        formats: What runs; the first match counts.
    """

    name: str
    title: str
    basis: str
    notes: str
    memory_bandwidth_bytes_per_s: Sourced
    launch_overhead_s: Sourced
    memory_energy_j_per_byte: Sourced
    compute: Mapping[str, Compute]
    formats: tuple[Runs, ...]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A profile from its JSON object.

        Raises:
            FileFormatError: If it does not fit ``profile.schema.json``; names the key.
        """
        _validate(data)
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
            formats=formats,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a profile from a JSON file.

        Raises:
            FileFormatError: If the file cannot be read, is no JSON, or is no profile.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"cannot read the profile {path}: {error}") from error
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{path} is not JSON: {error}") from error
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error

    def arithmetic(self, layer: Layer, precision: Precision) -> Compute | None:
        """What a layer runs as at a precision; ``None`` if the device cannot.

        A layer without arithmetic (an embedding) runs in every weight format that any layer does.
        """
        weight, activation = precision.weight.number.name, precision.activation.number.name
        for runs in self.formats:
            fits = not runs.layer_kinds or layer.kind in runs.layer_kinds
            if weight in runs.weights and layer.kind == "embedding":
                return self.compute[runs.compute]
            if fits and weight in runs.weights and activation in runs.activations:
                return self.compute[runs.compute]
        return None

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether any layer that computes could run at this precision."""
        weight, activation = precision.weight.number.name, precision.activation.number.name
        return any(weight in r.weights and activation in r.activations for r in self.formats)

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        choices: Sequence[Precision],
        batch_size: int = 1,
    ) -> CostTable:
        """``[L, B]`` cost of one resource; ``nan`` where the device cannot run a layer.

        Args:
            resource: ``latency`` (seconds per batch), ``energy`` (joules per batch), or one of
                ``LINEAR_RESOURCES``.
            layers: ``L`` layers.
            choices: ``B`` precisions.
            batch_size: Examples that are run at once.

        Raises:
            UnknownNameError: If there is no such resource.
            InputError: If the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"the batch size is at least 1; got {batch_size}")
        runs = [[self.arithmetic(layer, choice) for choice in choices] for layer in layers]
        unable = np.array([[compute is None for compute in row] for row in runs], dtype=np.bool_)
        unable = unable.reshape(len(layers), len(choices))
        if resource in LINEAR_RESOURCES:
            table = linear_cost(resource, layers, choices)
            values = np.where(unable, np.nan, table.values)
            return CostTable(resource, table.unit, table.layers, table.precisions, values)
        units = {"latency": "seconds", "energy": "joules"}
        if resource not in units:
            raise UnknownNameError("resource", resource, [*units, *LINEAR_RESOURCES])
        values = np.full(unable.shape, np.nan)
        for row, column in zip(*np.nonzero(~unable), strict=True):
            compute = runs[row][column]
            assert compute is not None
            values[row, column] = self._price(
                resource, compute, layers[row], choices[column], batch_size
            )
        names = tuple(layer.name for layer in layers)
        return CostTable(resource, units[resource], names, tuple(choices), values)

    def _price(
        self, resource: str, compute: Compute, layer: Layer, precision: Precision, batch_size: int
    ) -> float:
        if resource == "latency":
            return latency_seconds(
                layer,
                precision,
                batch_size,
                peak_operations_per_s=compute.peak_operations_per_s.value,
                bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s.value,
                launch_overhead_s=self.launch_overhead_s.value,
            )
        return energy_joules(
            layer,
            precision,
            batch_size,
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


def device_names() -> tuple[str, ...]:
    """Devices that ship with mpq."""
    folder = resources.files("mpq.hardware_profiles").joinpath("devices")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def load_device(name: str) -> Profile:
    """A device by name, or from ``path/to/device.json``.

    Raises:
        UnknownNameError: If there is no such device.
        FileFormatError: If the file is no profile.
    """
    if name.endswith(".json"):
        return Profile.load(Path(name))
    if name not in device_names():
        raise UnknownNameError("device", name, device_names())
    file = resources.files("mpq.hardware_profiles").joinpath("devices", f"{name}.json")
    return Profile.from_dict(json.loads(file.read_text(encoding="utf-8")))


@cache
def _schema() -> Any:
    file = resources.files("mpq.schemas").joinpath("profile.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _validate(data: Any) -> None:
    from mpq.schemas import validate

    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise FileFormatError(
            f"profile of schema version {version}; this mpq reads version {SCHEMA_VERSION}: "
            "update mpq"
        )
    validate(data, _schema(), "profile")
