"""What measuring a few cells says about an estimate, as a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, final

FACTOR: Final = 20.0
"""How far a prediction may be below what is measured. Where predictions are right, cells are below
by up to 6.6, as losses have heavy tails and few examples are looked at, so that 5 would be a false
alarm in every check of ResNet-20: ``benchmarks/spot_check.json``. Jumps that no gradient sees are
off by 13 to 47,000: ``benchmarks/kinds.json``."""
DEAR: Final = 50.0
"""How far it may be above. Where predictions are right, by up to 31: at 20 or 30, 3 of 100 checks
of ResNet-20 would be false alarms. More costs little, as nothing is mended."""
AGREEMENT: Final = 0.3
"""Kendall's tau below which predictions are called out of order. Where the sketch is right it is at
least 0.54, in 8,000 checks of four networks; a random order of their cells is told in 78 to 84 of
100 checks."""
APART: Final = 2.0
"""How far two measurements are apart at least for their order to count: few examples tell no finer,
and layers that are alike have no order."""

_SHOWN: Final = 8
"""Names in a sentence; all of them are in the record."""


@final
@dataclass(frozen=True)
class CheckedCell:
    """One layer at one precision, the others as they are.

    Args:
        layer: The layer's name.
        precision: The candidate.
        predicted: By the estimator, in its own unit.
        measured: On the same examples that the check used, in the metric's unit.
        is_off: Whether the prediction is below the measurement by more than ``FACTOR``.
        is_dear: Whether it is above by more than ``DEAR``.
    """

    layer: str
    precision: str
    predicted: float
    measured: float
    is_off: bool
    is_dear: bool = False


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
        agreement: Kendall's tau of predictions and measurements, over pairs of cells whose
            measurements are ``APART``; ``None``: too few such pairs.
        out_of_order: Where it is below ``AGREEMENT``: layers without which the others agree.
        compares_size: Whether predictions are in the unit of what was measured; if not, only their
            order can be compared.
        choosing: Layers by whose output something is chosen, as by a router's: no prediction
            of theirs is believed.
        before_choice: Layers whose output reaches one of these, and which are none themselves.
        raised: Those of them whose predictions were raised by what ``sampled`` lose.
        sampled: Those of them that were measured at a few precisions, on few examples.
        negative: Layers whose weights' curvature was found below 0, which counts as 0 at every
            precision: noise of few probes, or directions in which the loss falls.
    """

    cells: tuple[CheckedCell, ...]
    unit: str
    forward_passes: float
    no_gradient: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    fallback: str = ""
    without_effect: tuple[str, ...] = ()
    agreement: float | None = None
    out_of_order: tuple[str, ...] = ()
    compares_size: bool = True
    choosing: tuple[str, ...] = ()
    before_choice: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` makes of it, also after JSON, which has no tuples."""
        values: dict[str, Any] = {
            k: tuple(x) if isinstance(x, list) else x for k, x in data.items()
        }
        values["cells"] = tuple(CheckedCell(**cell) for cell in data["cells"])
        return cls(**values)

    @property
    def failing(self) -> tuple[str, ...]:
        """Layers at which prediction and measurement part, by a factor or in rank."""
        return tuple(dict.fromkeys((*self.off, *self.out_of_order)))

    @property
    def off(self) -> tuple[str, ...]:
        """Layers whose prediction is far below the measurement."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells if cell.is_off))

    @property
    def untrusted(self) -> tuple[str, ...]:
        """Layers whose predictions failed, and were neither measured nor raised instead."""
        if self.fallback:
            return ()
        free = (*self.no_gradient, *self.negative)
        blind = (name for name in free if name not in self.without_effect)
        before = () if self.raised or self.sampled else self.before_choice
        failed = dict.fromkeys((*blind, *self.failing, *self.choosing, *before))
        return tuple(name for name in failed if name not in self.repaired)

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
        if self.negative:
            found.append(
                f"the curvature of {_listed(self.negative)} was found negative and prices no "
                f"weights (more probes may find it positive): {self._done(self.negative)}"
            )
        if self.without_effect:
            found.append(
                f"{', '.join(self.without_effect)}: no precision changes what is compared, so that "
                "the fewest bits are taken; fix them, or compare the outputs behind them too "
                "(--outputs)"
            )
        others = [name for name in self.off if name not in self.no_gradient]
        if others:
            found.append(
                f"the prediction is more than {FACTOR:g} x below the measurement at "
                f"{', '.join(others)}: {self._done(others)}"
            )
        if self.choosing:
            found.append(
                "something is chosen (top-k, a comparison, rounding) by what "
                f"{_listed(self.choosing)} give, and no gradient tells of another choice: "
                f"{self._done(self.choosing)}"
            )
        left = [name for name in self.before_choice if name not in self.repaired]
        if self.before_choice:
            found.append(self._before(left))
        other = {*self.no_gradient, *self.failing, *self.choosing, *self.before_choice}
        also = [n for n in self.repaired if n not in other and not self.fallback]
        if also:
            found.append(
                f"functions read the weight of {_listed(also)} besides their calls, which no "
                "gradient of these tells: measured instead"
            )
        if self.out_of_order:
            found.append(
                f"predictions and measurements are in another order (Kendall's tau "
                f"{self.agreement:.2f}), most of all at {', '.join(self.out_of_order)}: "
                f"{self._done(self.out_of_order)}"
            )
        dear = dict.fromkeys(cell.layer for cell in self.cells if cell.is_dear)
        if dear:
            found.append(
                f"the prediction is more than {DEAR:g} x above the measurement at "
                f"{', '.join(dear)}: they may get more bits than they need"
            )
        passes = self.forward_passes
        cost = f"{passes:.2g}" if passes < 10 else f"{passes:,.0f}"
        return (*found, f"spot check: {self._outcome} ({cost} forward passes)")

    def _before(self, left: Sequence[str]) -> str:
        """Of layers before a choice, ``left`` being those that were not measured whole."""
        if not left:
            return f"{_listed(self.before_choice)} can turn such a choice: measured instead"
        told = f"{_listed(left)} can turn such a choice"
        if self.raised:
            return (
                f"{told}: their predictions were raised by what {len(self.sampled)} of them lose "
                "beyond their own on few examples"
            )
        if self.sampled:
            return f"{told}: {len(self.sampled)} of them were measured, and lose what is predicted"
        return f"{told}, and may be predicted too cheap: {self._done(left)}"

    @property
    def tolerance(self) -> str:
        """What "hold" means, for people; empty: nothing is said of single predictions."""
        if not (self.cells and self.compares_size):
            return ""
        return (
            f"a prediction of one layer holds where it is at most {FACTOR:g} x below and "
            f"{DEAR:g} x above what is measured, on few examples"
        )

    @property
    def _outcome(self) -> str:
        if not self.cells:
            return "no prediction was left to check"
        count, tau = len(self.cells), self.agreement
        held = sum(not (cell.is_off or cell.is_dear) for cell in self.cells)
        order = ""
        if tau is not None:
            agrees = "does not agree" if self.out_of_order else "agrees"
            order = f"order {agrees} by tau {tau:.2f}"
        if self.compares_size:
            return f"{held} of {count} predictions hold" + (f", their {order}" if order else "")
        # Another unit: nothing can be said of single predictions.
        return f"{count} cells measured, whose {order or 'losses are too alike to be ordered'}"

    def _done(self, names: Sequence[str]) -> str:
        if set(names) <= set(self.repaired):
            return "measured instead"
        return "not to be trusted, search with --sensitivity auto or measured"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
