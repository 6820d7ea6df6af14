"""What a whole network takes, where that is not the sum of its layers."""

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, final

from mpq.errors import InputError


@final
@dataclass(frozen=True)
class NetworkFit:
    """Correction of one network's latency, fitted to measured assignments of precisions.

    Predicted seconds = ``overhead_seconds + scale * (layers + conversions)``. What the sum of
    layers misses is overlap, fusion, and work between layers.

    Args:
        fingerprint: Of the network's layers: ``mpq.layer.fingerprint`` of their signatures.
        scale: Above 0; below 1 where layers overlap.
        overhead_seconds: Per batch, besides the layers; negative where the line says so.
        num_measured: Whole networks that it was fitted to.
        median_absolute_error: Of the predictions for them, relative.
        spearman: Rank correlation of predicted and measured.

    Raises:
        InputError: If a number is not finite, or the scale not positive.
    """

    fingerprint: str
    scale: float
    overhead_seconds: float
    num_measured: int
    median_absolute_error: float
    spearman: float

    def __post_init__(self) -> None:
        numbers = (self.scale, self.overhead_seconds, self.median_absolute_error, self.spearman)
        if not all(map(isfinite, numbers)) or self.scale <= 0:
            raise InputError(
                f"correction of network {self.fingerprint[:8]}: numbers are finite and the scale "
                f"is positive; got {self}"
            )

    @property
    def source(self) -> str:
        """How good it is, in words."""
        return (
            f"fitted to {self.num_measured} measured networks: median error "
            f"{self.median_absolute_error:.1%}, Spearman {self.spearman:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@final
@dataclass(frozen=True)
class FixedPart:
    """What runs besides the layers of the table, the same at every assignment.

    Args:
        name: Such as ``head``.
        latency_seconds: Per batch.
        energy_joules: Per batch, if known.
        source: Publication or measurement.

    Raises:
        InputError: If a number is negative or not finite.
    """

    name: str
    latency_seconds: float
    energy_joules: float | None
    source: str

    def __post_init__(self) -> None:
        for amount in (self.latency_seconds, self.energy_joules):
            if amount is not None and not (isfinite(amount) and amount >= 0):
                raise InputError(f"fixed part {self.name!r} costs {amount}; at least 0 is expected")

    def value(self, resource: str) -> float:
        """Seconds of ``latency`` or joules of ``energy``."""
        return {"latency": self.latency_seconds, "energy": self.energy_joules or 0.0}[resource]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
