"""What a score said of assignments, kept on disk: a killed search asks what is left."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final, final

from torch import Tensor, nn

from mpq._support.cache import Cache
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.fingerprint import checksum, quantizer_key, restricted
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.workflows.cache_keys import key_of, network_parts

_OF_ORIGINAL: Final = "the original"


@final
@dataclass(frozen=True)
class Said:
    """What a call gave.

    Args:
        score: Of a network.
        seconds: That it took.
    """

    score: float
    seconds: float


@final
@dataclass(frozen=True, eq=False)
class KeptScores:
    """Files of scores in a cache, one for each call.

    Args:
        cache: Where they are.
        score: Tells the score from others.
        network: Whose layers are quantized.
        quantizer: That assignments have in common, whatever codes and ranges.
        data: Examples that the score is told, and that tell networks apart.
        model: The original.
    """

    cache: Cache
    score: str
    network: Network
    quantizer: Quantizer
    data: Calibration
    model: nn.Module

    def original(self, ask: Callable[[], Said]) -> Said:
        """What it said of the original before, or says now.

        Raises:
            OutputError: If the cache cannot be read.
        """
        return self._said({"precisions": _OF_ORIGINAL}, ask)

    def quantized(
        self, precisions: Mapping[str, Precision], quantizer: Quantizer, ask: Callable[[], Said]
    ) -> Said:
        """What it said of an assignment before, or says now.

        Args:
            precisions: Layer name to precision; a layer that is not there stays as it is.
            quantizer: With all codes and ranges of the assignment.
            ask: The call.

        Raises:
            OutputError: If the cache cannot be read.
        """
        changed = {name: p for name, p in precisions.items() if p != ORIGINAL}
        chosen = "\n".join(f"{name} {p}" for name, p in sorted(changed.items()))
        own = quantizer_key(restricted(quantizer, changed))
        return self._said({**own, "precisions": chosen}, ask)

    def _said(self, own: Mapping[str, str], ask: Callable[[], Said]) -> Said:
        name = key_of({**self._common, **own}) + ".score"
        content = self.cache.read(name)
        if content is not None:
            return Said(**json.loads(content))
        found = ask()
        self.cache.write(name, json.dumps(asdict(found)).encode())
        return found

    @cached_property
    def _common(self) -> dict[str, str]:
        # Its quantizer's part is replaced for every assignment.
        plain = restricted(self.quantizer, {})
        parts = network_parts(self.network, self.data, plain, ())
        held = (x for x in self.model.state_dict().values() if isinstance(x, Tensor))
        return {**parts, "original": checksum(held), "score": self.score}
