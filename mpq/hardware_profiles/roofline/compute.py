"""The arithmetic of a device: how fast it multiplies numbers of two formats, at what energy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, final

from mpq.errors import FileFormatError
from mpq.hardware_profiles.sourced import Sourced
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.precision import Precision

PEAK: Final = Sourced(1.0, "none given: the rate is taken as it is stated")
"""The utilisation where a profile says nothing."""


@final
@dataclass(frozen=True)
class PeakRate:
    """One rate for every format that runs as this arithmetic.

    Args:
        peak_operations_per_s: Dense; a multiply-accumulate is two operations.
        energy_j_per_mac: Energy of one multiply-accumulate.
        utilisation: Share of the peak that is reached, above 0 and at most 1.
    """

    peak_operations_per_s: Sourced
    energy_j_per_mac: Sourced
    utilisation: Sourced = PEAK

    def operations_per_s(self, _: Precision) -> float:
        """At any precision the peak rate times the utilisation."""
        return self.peak_operations_per_s.value * self.utilisation.value

    def joules_per_mac(self, _: Precision) -> float:
        """The same at any precision."""
        return self.energy_j_per_mac.value

    def numbers(self) -> dict[str, Sourced]:
        """Its numbers, the unit in every name."""
        return {
            "peak_operations_per_s": self.peak_operations_per_s,
            "energy_j_per_mac": self.energy_j_per_mac,
            "utilisation": self.utilisation,
        }


@final
@dataclass(frozen=True)
class BitRate:
    r"""A rate per bit operation: arithmetic that is composed of narrow pieces.

    .. math:: \text{MAC/s} = \frac{u \, P}{\lceil w \rceil \lceil a \rceil}

    for weights of :math:`w` and activations of :math:`a` bits, each rounded up to the next step,
    the peak :math:`P` and the utilisation :math:`u`. A multiply-accumulate of :math:`w` by
    :math:`a` bits is :math:`wa` bit operations, as in ``bit_operations``. References: Sharma et
    al. (2018), Bit Fusion, ISCA, arXiv:1712.01507 (steps 2, 4, 8, 16); Umuroglu et al. (2018),
    BISMO, FPL, arXiv:1806.08862 (bit-serial: every width is a step).

    Args:
        peak_bit_operations_per_s: Multiply-accumulates of 1 by 1 bit.
        energy_j_per_bit_operation: Energy of one of them.
        bit_steps: Widths that it multiplies in, rising.
        steps_source: Publication that the widths are from.
        utilisation: Share of the peak that is reached, above 0 and at most 1.
    """

    peak_bit_operations_per_s: Sourced
    energy_j_per_bit_operation: Sourced
    bit_steps: tuple[int, ...]
    steps_source: str
    utilisation: Sourced = PEAK

    def bit_operations_per_mac(self, precision: Precision) -> int:
        """Product of both widths, rounded up to steps."""
        widths = (precision.weight.number.bits, precision.activation.number.bits)
        # an embedding multiplies nothing: its activations may be wider than every step
        weight, activation = (next((s for s in self.bit_steps if s >= b), b) for b in widths)
        return weight * activation

    def operations_per_s(self, precision: Precision) -> float:
        """Two operations per multiply-accumulate."""
        peak = self.peak_bit_operations_per_s.value * self.utilisation.value
        # The peak counts multiply-accumulates of 1 by 1 bit, a rate two operations in each.
        return 2 * peak / self.bit_operations_per_mac(precision)

    def joules_per_mac(self, precision: Precision) -> float:
        """Energy of all bit operations of a multiply-accumulate."""
        return self.energy_j_per_bit_operation.value * self.bit_operations_per_mac(precision)

    def numbers(self) -> dict[str, Sourced]:
        """Its numbers, the unit in every name."""
        # One entry per step, since a number for people is a single value with a source.
        steps = {f"bit_step_{step}": Sourced(step, self.steps_source) for step in self.bit_steps}
        return {
            "peak_bit_operations_per_s": self.peak_bit_operations_per_s,
            "energy_j_per_bit_operation": self.energy_j_per_bit_operation,
            **steps,
            "utilisation": self.utilisation,
        }


Compute = PeakRate | BitRate
"""Arithmetic, stated in either way."""


_PEAK_KEYS: Final = ("peak_operations_per_s", "energy_j_per_mac")
_BIT_KEYS: Final = ("peak_bit_operations_per_s", "energy_j_per_bit_operation", "bit_steps")


def compute_from_dict(name: str, data: Mapping[str, Any]) -> Compute:
    """From a JSON object that fits ``compute`` of ``roofline.schema.json``.

    Raises:
        FileFormatError: If it states its rate in both ways.
    """
    # The schema asks for one set of keys, and lets the other one stand beside it.
    if any(key in data for key in _PEAK_KEYS) and any(key in data for key in _BIT_KEYS):
        raise FileFormatError(
            f"compute/{name} states its rate twice: give {' and '.join(_PEAK_KEYS)}, or "
            f"{', '.join(_BIT_KEYS)}; got {', '.join(data)}"
        )
    # Steps are a list with one source, all other entries are numbers with one each.
    numbers = {key: Sourced(**value) for key, value in data.items() if key != "bit_steps"}
    if "bit_steps" not in data:
        return PeakRate(**numbers)
    steps = data["bit_steps"]
    # Rising, as the first step that is wide enough is taken.
    return BitRate(
        **numbers, bit_steps=tuple(sorted(steps["values"])), steps_source=steps["source"]
    )


@final
@dataclass(frozen=True)
class Runs:
    """Which number formats a device runs, and as which arithmetic.

    Args:
        weights: Number formats of the weight.
        activations: Number formats of the input.
        compute: Name of the arithmetic that such layers run as.
        layer_kinds: Kinds of layers; empty: all.
        source: Publication that says so.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    compute: str
    layer_kinds: tuple[str, ...]
    source: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From a JSON object that fits ``formats`` of ``roofline.schema.json``."""
        return cls(
            tuple(data["weights"]),
            tuple(data["activations"]),
            data["compute"],
            tuple(data.get("layer_kinds", ())),
            data["source"],
        )

    def check(self, compute: Mapping[str, Compute], device: str) -> None:
        """Refuses formats that the arithmetic cannot take.

        Raises:
            FileFormatError: If there is no such arithmetic, or it has no step wide enough.
        """
        if self.compute not in compute:
            raise FileFormatError(
                f"{device}: formats name the arithmetic {self.compute!r}, which "
                f"`compute` lacks (it has {', '.join(compute)})"
            )
        # A peak rate holds for all that is said to run as it; bit steps may be too narrow.
        arithmetic = compute[self.compute]
        if isinstance(arithmetic, BitRate):
            for name in (*self.weights, *self.activations):
                _check_step(name, arithmetic, f"{device}: {self.compute}")


def _check_step(name: str, arithmetic: BitRate, where: str) -> None:
    number = NUMBER_FORMATS[name]  # the schema has let nothing else pass
    if number.is_float:
        raise FileFormatError(f"{where} counts bit operations, which are of integers; got {name}")
    if number.bits > arithmetic.bit_steps[-1]:
        raise FileFormatError(
            f"{where}: its widest bit step is {arithmetic.bit_steps[-1]}, too narrow for {name}"
        )
