"""One measurement of a layer: its shape, its formats, and how long that took."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from typing import Any, Self, final

from mpq.errors import InputError
from mpq.hardware_profiles.measured_table.shape import Shape
from mpq.quantization.precision import Precision

Key = tuple[Shape, int, Precision]


@final
@dataclass(frozen=True)
class Entry:
    """What one call of a layer took.

    Args:
        kind: Kind of the layer, as in ``Layer``: ``linear``, ``conv2d``.
        weight_shape: Shape of the weight, as torch stores it.
        input_shape: Input shape of one example, without the batch axis.
        output_shape: Output shape of one example, without the batch axis.
        groups: Groups of a convolution; 1 elsewhere.
        batch_size: Examples that ran at once.
        precision: Formats of weight and input.
        latency_seconds: One call, for the whole batch.
        latency_low_seconds: Lower end of the 95 % interval of ``latency_seconds``, if known.
        latency_high_seconds: Upper end of that interval, if known.
        energy_joules: One call, for the whole batch, if known.
        runs: How many runs the latency is the median (or mean) of, if known.
        source: Where this entry comes from, if not from where its table does.

    Raises:
        UnknownNameError: If there is no such kind of layer.
        InputError: If the shapes do not fit each other, a time or an energy is not positive and
            finite, or the interval does not hold the latency.
    """

    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int
    batch_size: int
    precision: Precision
    latency_seconds: float
    latency_low_seconds: float | None = None
    latency_high_seconds: float | None = None
    energy_joules: float | None = None
    runs: int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        where = str(self)  # makes the shape, which refuses a malformed one
        for name, count in (("batch_size", self.batch_size), ("runs", self.runs)):
            if count is not None and count < 1:
                raise InputError(f"{where}: {name} is at least 1; got {count}")
        low, high = self.latency_low_seconds, self.latency_high_seconds
        for name, amount in (
            ("latency_seconds", self.latency_seconds),
            ("latency_low_seconds", low),
            ("latency_high_seconds", high),
            ("energy_joules", self.energy_joules),
        ):
            # Not even 0: an interpolation divides by these values, to make errors relative.
            if amount is not None and not (isfinite(amount) and amount > 0):
                raise InputError(f"{where}: {name} must be positive and finite; got {amount}")
        # Half an interval has no half width.
        if (low is None) != (high is None):
            raise InputError(
                f"{where}: an interval has two ends, latency_low_seconds and latency_high_seconds"
            )
        if low is not None and high is not None and not low <= self.latency_seconds <= high:
            raise InputError(
                f"{where}: the latency {self.latency_seconds:g} s lies outside its own interval, "
                f"{low:g} to {high:g} s"
            )

    # A cached property writes to `__dict__` itself, which a frozen dataclass allows.
    @cached_property
    def shape(self) -> Shape:
        """What was run, with equal calls spelled alike."""
        return Shape(self.kind, self.weight_shape, self.input_shape, self.output_shape, self.groups)

    @property
    def key(self) -> Key:
        """What a table has one entry of."""
        return self.shape, self.batch_size, self.precision

    def __str__(self) -> str:
        return f"{self.shape}, at {self.precision} and batch size {self.batch_size}"

    def value(self, resource: str) -> float:
        """Seconds of ``latency`` or joules of ``energy``; ``nan``: unknown."""
        # nan, not None, so that a column of entries is an array of floats.
        joules = nan if self.energy_joules is None else self.energy_joules
        return {"latency": self.latency_seconds, "energy": joules}[resource]

    def half_width(self, resource: str) -> float:
        """Half width of the 95 % interval, in the resource's unit; ``nan``: unknown."""
        low, high = self.latency_low_seconds, self.latency_high_seconds
        return nan if resource != "latency" or low is None or high is None else (high - low) / 2

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is unknown is left out."""
        # The keys are those of the CSV's columns as well: `entries_to_csv` writes this.
        known = {
            "kind": self.kind,
            "weight_shape": list(self.weight_shape),
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "groups": self.groups,
            "batch_size": self.batch_size,
            "precision": str(self.precision),
            "latency_seconds": self.latency_seconds,
            "latency_low_seconds": self.latency_low_seconds,
            "latency_high_seconds": self.latency_high_seconds,
            "energy_joules": self.energy_joules,
            "runs": self.runs,
            "source": self.source,
        }
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``, for an object that fits ``measured.schema.json``."""
        return cls(
            kind=data["kind"],
            weight_shape=tuple(data["weight_shape"]),
            input_shape=tuple(data["input_shape"]),
            output_shape=tuple(data["output_shape"]),
            groups=data["groups"],
            batch_size=data["batch_size"],
            precision=Precision.parse(data["precision"]),
            latency_seconds=data["latency_seconds"],
            latency_low_seconds=data.get("latency_low_seconds"),
            latency_high_seconds=data.get("latency_high_seconds"),
            energy_joules=data.get("energy_joules"),
            runs=data.get("runs"),
            source=data.get("source"),
        )
