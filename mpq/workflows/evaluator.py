"""Measures assignments: quantizes the network, runs it, compares with the original."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Columns
from mpq._support.cache import Cache
from mpq._support.events import audience, tell
from mpq.callbacks.results import Measured
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.report.measurement import Measurement
from mpq.workflows.evaluate import Reference
from mpq.workflows.kept_measurements import KeptMeasurements
from mpq.workflows.own_codes import OwnCodes
from mpq.workflows.room import rounds_in_calls
from mpq.workflows.score import Judge
from mpq.workflows.shared_measurements import SharedMeasurements
from mpq.workflows.sums import Sums

Losses = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Evaluator:
    """One network, and the original's answers to compare with.

    Args:
        network: Own copy of the model, whose layers are quantized for a measurement.
        quantizer: Ranges as the estimator saw them.
        reference: The original's answers on held-out examples.
        own: Assignments that have codes of their own.
        cache: Where measurements are kept on disk; ``None``: nowhere.
        shared: Ranks that measure together; ``None``: this process measures alone.
        judge: The user's own score of a network; ``None``: there is none.
        examples: ``HELD_OUT`` or ``CALIBRATION``, for whoever is told of measurements; empty:
            nobody is.
    """

    network: Network
    quantizer: Quantizer
    reference: Reference
    own: OwnCodes = field(default_factory=OwnCodes)
    cache: Cache | None = None
    shared: SharedMeasurements | None = None
    judge: Judge | None = None
    examples: str = ""
    _known: dict[frozenset[tuple[str, Precision]], Measurement] = field(
        default_factory=dict, init=False, repr=False
    )

    def measure(self, precisions: Mapping[str, Precision]) -> Measurement:
        """The network with these layers in these precisions, against the original."""
        known = self.known(precisions)
        if known is not None:
            return known
        found = self._measured(precisions, self.own.quantizer(precisions, self.quantizer))
        self.took(precisions, found)
        return found

    def known(self, precisions: Mapping[str, Precision]) -> Measurement | None:
        """What nobody has to measure: the original, and what was measured before."""
        # With nothing quantized it is the original. Our copy of it, BatchNorm folded, would differ
        # by float32 rounding (1e-14 nats or so): a number that says nothing, where 0 is exact.
        if all(precision == ORIGINAL for precision in precisions.values()):
            original, judge = self.reference.original, self.judge
            return original if judge is None else replace(original, score=judge.original)
        return self._known.get(frozenset(precisions.items())) if self._is_same(precisions) else None

    def took(self, precisions: Mapping[str, Precision], found: Measurement) -> None:
        """Keeps and tells a measurement, whoever made it; one that is known is not told again."""
        if self.known(precisions) is not None:
            return
        if self._is_same(precisions):
            self._known[frozenset(precisions.items())] = found
        # Trials of roundings and the like, which have no name, are not what anybody asked for.
        if audience() is not None and self.examples:
            tell(
                Measured(
                    self.examples, MappingProxyType(dict(precisions)), found.divergence,
                    found.metric.unit, found.accuracy, found.score,
                )
            )  # fmt: skip

    def _is_same(self, precisions: Mapping[str, Precision]) -> bool:
        # Codes and ranges of its own may be others the next time.
        return self.own.quantizer(precisions, self.quantizer) is self.quantizer

    def _measured(self, precisions: Mapping[str, Precision], quantizer: Quantizer) -> Measurement:
        def measured() -> Measurement:
            shared = self.shared
            # Codes of its own the other ranks have not.
            if shared is not None and shared.is_open and quantizer is self.quantizer:
                sums = shared.sums(precisions)
            else:
                sums = self._sums(precisions, quantizer)
            return sums.measurement(self.reference.metric)

        kept, judge = self._kept, self.judge
        found = measured() if kept is None else kept.measured(precisions, quantizer, measured)
        if judge is None:
            return found
        return replace(found, score=judge.of_quantized(self.network, quantizer, precisions))

    def sums(self, precisions: Mapping[str, Precision]) -> Sums:
        """What ``measure`` adds up, batch by batch."""
        return self._sums(precisions, self.quantizer)

    def _sums(self, precisions: Mapping[str, Precision], quantizer: Quantizer) -> Sums:
        in_calls = rounds_in_calls(self.network)
        with quantized(self.network, precisions, quantizer, one_at_a_time=in_calls):
            return self.reference.sums(self.network.module)

    @cached_property
    def _kept(self) -> KeptMeasurements | None:
        if self.cache is None:
            return None
        return KeptMeasurements(self.cache, self.network, self.quantizer, self.reference)

    def losses_of(self, candidates: Sequence[Precision]) -> Callable[[Columns], Losses]:
        """What is measured of assignments ``[P, L]`` of precisions: ``[P]`` divergences.

        Or how much worse than the original's their own score is, where the task has one.
        """

        def losses(assignments: Columns) -> Losses:
            # One network after the other: all of them are the same module with other weights.
            named = self.named(candidates, assignments)
            return np.array([self.loss(self.measure(precisions)) for precisions in named])

        return losses

    def losses_on_share(
        self, candidates: Sequence[Precision], share: float, seed: int
    ) -> Callable[[Columns], Losses]:
        """``losses_of`` on some of the examples: divergences, also where there is a score.

        Args:
            candidates: ``B`` precisions.
            share: Of the examples, 0 to 1.
            seed: Draws which.
        """
        some = self.reference.on_share(share, seed)
        here = replace(self, reference=some, cache=None, shared=None, judge=None, examples="")
        return here.losses_of(candidates)

    def named(
        self, candidates: Sequence[Precision], assignments: Columns
    ) -> list[dict[str, Precision]]:
        """Layer to precision, of assignments ``[P, L]`` of these precisions."""
        names = [layer.name for layer in self.network.layers]
        rows = ([candidates[column] for column in row] for row in assignments.tolist())
        return [dict(zip(names, row, strict=True)) for row in rows]

    def loss(self, measured: Measurement) -> float:
        """Of what was measured here: the divergence, or the drop of the task's own score."""
        if self.judge is None or measured.score is None:
            return measured.divergence
        return self.judge.drop(measured.score)

    def uniform(self, precision: Precision) -> dict[str, Precision]:
        """Every layer at one precision."""
        return {layer.name: precision for layer in self.network.layers}
