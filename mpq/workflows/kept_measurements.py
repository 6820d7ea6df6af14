"""Measurements that are kept on disk: uniform precisions are the same beside every answer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from mpq._support.cache import Cache
from mpq.network.network import Network
from mpq.quantization.fingerprint import quantizer_key, restricted
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
    """

    cache: Cache
    network: Network
    quantizer: Quantizer
    reference: Reference

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
        own = quantizer_key(restricted(quantizer, precisions))
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
        plain = restricted(self.quantizer, {})
        parts = network_parts(self.network, self.reference.data, plain, ())
        return {**parts, "original": self.reference.checksum}
