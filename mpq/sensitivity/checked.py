"""What measuring a few cells says about an estimate, as a record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

FACTOR: Final = 20.0
"""How far a prediction may be below what is measured. Where predictions are right, single cells are
off by up to 6.6, as losses have heavy tails and few examples are looked at: see
``benchmarks/spot_check.json``. A gradient that is missing is off by hundreds."""


@final
@dataclass(frozen=True)
class CheckedCell:
    """One layer at one precision, the others as they are.

    Args:
        layer: The layer's name.
        precision: The candidate.
        predicted: By the estimator, in its own unit.
        measured: On the same examples that the check used, in the metric's unit.
        is_off: Whether the two part by more than ``FACTOR``.
    """

    layer: str
    precision: str
    predicted: float
    measured: float
    is_off: bool


@final
@dataclass(frozen=True)
class SpotCheck:
    """What a few measurements say about an estimate.

    Args:
        cells: The cells that were measured.
        unit: Unit of what was measured.
        forward_passes: What the check took, in passes over the calibration examples.
        no_gradient: Layers whose loss was predicted to be 0 at every precision though their weight
            changes: no gradient reaches them.
        repaired: Layers whose rows were measured instead, whatever the reason.
        fallback: Why nothing could be predicted, so that all was measured; empty: it could.
        without_effect: Layers that change nothing of what is compared, at any precision.
    """

    cells: tuple[CheckedCell, ...]
    unit: str
    forward_passes: float
    no_gradient: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    fallback: str = ""
    without_effect: tuple[str, ...] = ()

    @property
    def off(self) -> tuple[str, ...]:
        """Layers at which prediction and measurement part."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells if cell.is_off))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, for people."""
        found = []
        if self.fallback:
            found.append(f"{self.fallback}: every layer was measured instead")
        blind = [name for name in self.no_gradient if name not in self.without_effect]
        if blind:
            found.append(
                f"no gradient reaches {', '.join(blind)} (rounding, detach or a "
                f"comparison behind them): {self._done(blind)}"
            )
        if self.without_effect:
            found.append(
                f"{', '.join(self.without_effect)}: no precision changes what is compared, so that "
                "they get the fewest bits; fix them, or compare the outputs behind them too "
                "(--outputs)"
            )
        others = [name for name in self.off if name not in self.no_gradient]
        if others:
            found.append(
                f"the prediction is more than {FACTOR:g} x below the measurement at "
                f"{', '.join(others)}: {self._done(others)}"
            )
        count, off = len(self.cells), sum(cell.is_off for cell in self.cells)
        found.append(
            f"spot check: {count - off} of {count} predictions hold "
            f"({self.forward_passes:.2g} forward passes)"
        )
        return tuple(found)

    def _done(self, names: Sequence[str]) -> str:
        if set(names) <= set(self.repaired):
            return "measured instead"
        return "not to be trusted, search with --sensitivity auto or measured"
