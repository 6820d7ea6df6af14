"""Measurements that are kept on disk: uniform precisions are the same beside every answer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from mpq._support.cache import Cache
from mpq.network.network import Network
from mpq.quantization.fingerprint import quantizer_key
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.report.measurement import Measurement
from mpq.workflows.cache_keys import key_of, network_parts
from mpq.workflows.evaluate import Reference


@final
@dataclass(frozen=True, eq=False)
class KeptMeasurements:
    """Files of measurements on the same examples in a cache.

    Args:
        cache: Where they are.
        network: That is quantized.
        quantizer: Of all assignments that have nothing of their own.
        reference: The original's answers.
        score: Tells the task's own score from others; empty: it has none.
    """

    cache: Cache
    network: Network
    quantizer: Quantizer
    reference: Reference
    score: str = ""

    def measured(
        self,
        precisions: Mapping[str, Precision],
        quantizer: Quantizer,
        make: Callable[[], Measurement],
    ) -> Measurement:
        """What was measured of an assignment before, or is now.

        Args:
            precisions: Layer name to precision.
            quantizer: With all codes and ranges of the assignment.
            make: Measures it.

        Raises:
            OutputError: If the cache cannot be read or written.
        """
        own = quantizer_key(_restricted(quantizer, precisions))
        chosen = "\n".join(f"{name} {precision}" for name, precision in sorted(precisions.items()))
        name = key_of({**self._common, **own, "precisions": chosen}) + ".measurement"
        content = self.cache.read(name)
        if content is not None:
            data = json.loads(content)
            by_example = np.array(data.pop("by_example"))
            return Measurement(**data, metric=self.reference.metric, by_example=by_example)
        found = make()
        data = asdict(replace(found, by_example=np.empty(0)))
        del data["metric"]
        data["by_example"] = found.by_example.tolist()
        self.cache.write(name, json.dumps(data).encode())
        return found

    @cached_property
    def _common(self) -> dict[str, str]:
        # Its quantizer's part is replaced for every assignment.
        plain = _restricted(self.quantizer, {})
        parts = network_parts(self.network, self.reference.data, plain, ())
        scored = {"score": self.score} if self.score else {}
        return {**parts, "original": self.reference.checksum, **scored}


def _restricted(quantizer: Quantizer, precisions: Mapping[str, Precision]) -> Quantizer:
    """What an assignment needs of a quantizer: among other candidates it is the same."""
    weights = {(name, p.weight) for name, p in precisions.items()}
    inputs = {(name, p.activation) for name, p in precisions.items()}
    stored = {cell: codes for cell, codes in quantizer.stored.items() if cell in weights}
    known = {cell: found for cell, found in quantizer.ranges.known.items() if cell in inputs}
    return replace(quantizer, stored=stored, ranges=ActivationRanges(known))
