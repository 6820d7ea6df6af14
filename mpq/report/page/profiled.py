"""What the page of a measured network says: its layers, what is between them, whole networks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, final

from mpq._support.names import shortened, visible
from mpq.report.amount import amount
from mpq.report.page.script_data import shortest

_FEWEST: Final = 5
"""Networks of which a rank correlation is told: of fewer it is next to chance."""


@final
@dataclass(frozen=True)
class NetworkTime:
    """A whole network that was run.

    Args:
        label: For people.
        is_uniform: Whether all layers have one precision.
        measured: Median seconds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        by_sum: Predicted by the plain sum of layers; ``None``: not recorded.
        unseen: By a correction that was fitted without this network; ``None``: not tried.
        final: By the profile's table, whose correction has seen it.
    """

    label: str
    is_uniform: bool
    measured: float
    low: float
    high: float
    by_sum: float | None
    unseen: float | None
    final: float


@final
@dataclass(frozen=True)
class CellTime:
    """A layer at a precision, all its calls in one run.

    Args:
        seconds: In a network: corrected.
        half_width: Half of its 95 % interval.
        alone: Measured alone; ``None``: not recorded.
    """

    seconds: float
    half_width: float
    alone: float | None


@final
@dataclass(frozen=True)
class LayerTimes:
    """One layer.

    Args:
        name: Its path.
        group: The module that it is shown under.
        cells: ``[B]``; ``None`` where it does not run.
    """

    name: str
    group: str
    cells: tuple[CellTime | None, ...]


@final
@dataclass(frozen=True)
class ConversionTime:
    """Two layers that follow each other, at two precisions.

    Args:
        first: The layer whose output the other one reads.
        second: That one.
        before: Precision of the first.
        after: Precision of the second.
        predicted: Seconds of one run beyond the cheapest of the measured combinations, corrected.
        measured: The same as measured; ``None``: not recorded.
    """

    first: str
    second: str
    before: str
    after: str
    predicted: float
    measured: float | None


@final
@dataclass(frozen=True)
class Uniform:
    """All layers at one precision.

    Args:
        precision: Its spelling.
        num_layers: Layers that run at it.
        layers: Seconds of these, corrected.
        between: Of what is between layers, corrected; below 0 where layers that follow each other
            take less together. ``None`` where not all layers run at it, as with ``total``.
        total: Predicted for the network: layers, what is between them, and what is besides.
        half_width: Half of the 95 % interval of the layers' sum, if layers err independently.
        measured: The network, run; ``None``: it was not.
    """

    precision: str
    num_layers: int
    layers: float
    between: float | None
    total: float | None
    half_width: float | None
    measured: NetworkTime | None


@final
@dataclass(frozen=True)
class Agreement:
    """How well a model predicts whole networks that it has not seen.

    Args:
        model: For people.
        median_error: Median of the absolute error, relative to the measured time.
        largest_error: The largest.
        spearman: Rank correlation.
        num_networks: How many were predicted and measured.
    """

    model: str
    median_error: float
    largest_error: float
    spearman: float
    num_networks: int

    @property
    def is_ranked(self) -> bool:
        """Whether the rank correlation is of enough networks to say something."""
        return self.num_networks >= _FEWEST


@final
@dataclass(frozen=True)
class ProfileFacts:
    """A measured network, in the order of what people ask.

    Args:
        name: Of the profile.
        title: Runtime and machine.
        batch_size: Examples of one run.
        precisions: ``[B]`` that were measured.
        besides: Seconds of a run besides layers and conversions.
        uniform: ``[B]`` all layers at one precision.
        networks: Whole networks that were run.
        agreements: The plain sum and the correction, on networks that they have not seen.
        layers: ``[L]`` in the network's order.
        conversions: Between layers; none where the runtime runs no pairs.
        correction: What whole networks changed: a name, a number.
        uncovered: What the numbers leave out, in sentences.
        machine: Processor, versions, runtime: a name, a value.
        command: Its words; none where it was called from Python, or by an older version.
        loaded: Network and examples as the command named them: a name, a value.
    """

    name: str
    title: str
    batch_size: int
    precisions: tuple[str, ...]
    besides: float
    uniform: tuple[Uniform, ...]
    networks: tuple[NetworkTime, ...]
    agreements: tuple[Agreement, ...]
    layers: tuple[LayerTimes, ...]
    conversions: tuple[ConversionTime, ...]
    correction: Mapping[str, float]
    uncovered: tuple[str, ...]
    machine: Mapping[str, str]
    command: tuple[str, ...] = ()
    loaded: tuple[tuple[str, str], ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, tuple[LayerTimes, ...]], ...]:
        """Neighbours of one module, under its path."""
        found = groupby(self.layers, key=lambda layer: layer.group)
        return tuple((name, tuple(layers)) for name, layers in found)

    @property
    def num_unmarked(self) -> int:
        """Times of layers that a logarithmic picture has no place for: measured to be nothing."""
        cells = (cell for layer in self.layers for cell in layer.cells)
        return sum(cell is not None and cell.seconds <= 0 for cell in cells)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is fastest, and how far a prediction may be off."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        able = [each for each in self.uniform if each.total is not None]
        if able:
            yield _fastest(min(able, key=_total), max(able, key=_total))
        yield from map(_told, self.agreements)
        if not self.agreements:
            yield (
                "No whole network was held out, so that how far predictions are off is not known."
            )

    def script_data(self) -> dict[str, Any]:
        """JSON-ready, what pictures are drawn of."""
        return {
            "precisions": list(self.precisions),
            "networks": [
                {
                    "label": x.label,
                    "measured": shortest(x.measured),
                    "low": shortest(x.low),
                    "high": shortest(x.high),
                    "sum": shortest(x.by_sum),
                    "unseen": shortest(x.unseen),
                    "final": shortest(x.final),
                }
                for x in self.networks
            ],
            "layers": [
                {
                    "name": shortened(visible(x.name)),
                    "seconds": [None if c is None else shortest(c.seconds) for c in x.cells],
                    "alone": [None if c is None else shortest(c.alone) for c in x.cells],
                }
                for x in self.layers
            ],
            "conversions": [
                [
                    shortened(visible(f"{x.first} at {x.before}, {x.second} at {x.after}")),
                    shortest(x.predicted),
                    shortest(x.measured),
                ]
                for x in self.conversions
            ],
        }


def _total(uniform: Uniform) -> float:
    assert uniform.total is not None
    return uniform.total


def _fastest(fastest: Uniform, slowest: Uniform) -> str:
    run, least = fastest.measured, _total(fastest)
    told = "" if run is None else f", measured {amount(run.measured, 'seconds')}"
    share = f", {least / _total(slowest):.2g} × {slowest.precision}" if slowest != fastest else ""
    return (
        f"Of uniform networks {fastest.precision} is fastest: predicted {amount(least, 'seconds')}"
        f"{told}{share}."
    )


def _told(found: Agreement) -> str:
    ranks = f", rank correlation {found.spearman:.2f}" if found.is_ranked else ""
    return (
        f"{found.model} predicts networks that it has not seen to {found.median_error:.1%} in the "
        f"median and {found.largest_error:.1%} at most ({found.num_networks} networks{ranks})."
    )
