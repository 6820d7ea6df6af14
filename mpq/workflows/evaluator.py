"""Measures assignments: quantizes the network, runs it, compares with the original."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Columns
from mpq._support.cache import Cache
from mpq._support.pages import is_streaming
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.report.measurement import Measurement
from mpq.workflows.evaluate import Reference
from mpq.workflows.kept_measurements import KeptMeasurements
from mpq.workflows.own_codes import OwnCodes

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
    """

    network: Network
    quantizer: Quantizer
    reference: Reference
    own: OwnCodes = field(default_factory=OwnCodes)
    cache: Cache | None = None
    _known: dict[frozenset[tuple[str, Precision]], Measurement] = field(
        default_factory=dict, init=False, repr=False
    )

    def measure(self, precisions: Mapping[str, Precision]) -> Measurement:
        """The network with these layers in these precisions, against the original."""
        # With nothing quantized it is the original. Our copy of it, BatchNorm folded, would differ
        # by float32 rounding (1e-14 nats or so): a number that says nothing, where 0 is exact.
        if all(precision == ORIGINAL for precision in precisions.values()):
            return self.reference.original
        quantizer = self.own.quantizer(precisions, self.quantizer)
        key = frozenset(precisions.items())
        if quantizer is self.quantizer and key in self._known:
            return self._known[key]
        found = self._measured(precisions, quantizer)
        # Codes and ranges of its own may be others the next time.
        if quantizer is self.quantizer:
            self._known[key] = found
        return found

    def _measured(self, precisions: Mapping[str, Precision], quantizer: Quantizer) -> Measurement:
        def measured() -> Measurement:
            with quantized(self.network, precisions, quantizer, one_at_a_time=is_streaming()):
                return self.reference.compare(self.network.module)

        if self._kept is None:
            return measured()
        return self._kept.measured(precisions, quantizer, measured)

    @cached_property
    def _kept(self) -> KeptMeasurements | None:
        if self.cache is None:
            return None
        return KeptMeasurements(self.cache, self.network, self.quantizer, self.reference)

    def losses_of(self, candidates: Sequence[Precision]) -> Callable[[Columns], Losses]:
        """Measured divergences ``[P]`` as a function of assignments ``[P, L]`` of precisions."""
        names = [layer.name for layer in self.network.layers]

        def losses(assignments: Columns) -> Losses:
            # One network after the other: all of them are the same module with other weights.
            rows = ([candidates[column] for column in row] for row in assignments.tolist())
            named = (dict(zip(names, row, strict=True)) for row in rows)
            return np.array([self.measure(precisions).divergence for precisions in named])

        return losses

    def uniform(self, precision: Precision) -> dict[str, Precision]:
        """Every layer at one precision."""
        return {layer.name: precision for layer in self.network.layers}
