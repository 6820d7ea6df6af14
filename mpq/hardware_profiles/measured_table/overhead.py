"""What a network runs besides the layers of a table."""

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, final

from mpq.errors import InputError


@final
@dataclass(frozen=True)
class FixedPart:
    """What runs besides the layers of the table, the same at every assignment.

    Args:
        name: What the part is called, such as ``head``.
        latency_seconds: Seconds that it takes per batch.
        energy_joules: Joules that it takes per batch, if known.
        source: Publication or measurement that both numbers are from.

    Raises:
        InputError: If a number is negative or not finite.
    """

    name: str
    latency_seconds: float
    energy_joules: float | None
    source: str

    def __post_init__(self) -> None:
        # 0 is allowed, unlike for an entry: nothing is fitted to the parts.
        for amount in (self.latency_seconds, self.energy_joules):
            if amount is not None and not (isfinite(amount) and amount >= 0):
                raise InputError(f"fixed part {self.name!r} costs {amount}; at least 0 is expected")

    def value(self, resource: str) -> float:
        """Seconds of ``latency`` or joules of ``energy``."""
        # Never 0 for unknown: a table refuses energies of some parts only.
        return {"latency": self.latency_seconds, "energy": self.energy_joules or 0.0}[resource]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
