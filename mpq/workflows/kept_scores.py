"""What a score said of assignments, kept on disk: a killed search asks what is left."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Final, final

from torch import Tensor, nn

from mpq._support.cache import Cache
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import Assignment
from mpq.problem.metadata import Metadata
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
        return self._said(_asked(precisions, quantizer), ask)

    def read(self, precisions: Mapping[str, Precision], quantizer: Quantizer) -> Said | None:
        """What it said of an assignment before; ``None``: nothing.

        Raises:
            OutputError: If the cache cannot be read.
        """
        return self._read(self._name(_asked(precisions, quantizer)))

    def write(self, precisions: Mapping[str, Precision], quantizer: Quantizer, found: Said) -> None:
        """Keeps what it said elsewhere."""
        self._write(self._name(_asked(precisions, quantizer)), found)

    def made(self, assignment: Assignment, ask: Callable[[], Said]) -> Said:
        """What it said of a network with all that an assignment stores, or says now.

        Raises:
            OutputError: If the cache cannot be read.
        """
        # What was measured of it changes nothing of the network.
        plain, stored = (
            replace(assignment, metadata=Metadata()),
            (assignment.weights, assignment.tuned),
        )
        parts = [plain.to_json(), *("" if x is None else x.sha256 for x in stored)]
        return self._said({"precisions": json.dumps(parts)}, ask)

    def _said(self, own: Mapping[str, str], ask: Callable[[], Said]) -> Said:
        name = self._name(own)
        known = self._read(name)
        if known is not None:
            return known
        found = ask()
        self._write(name, found)
        return found

    def _name(self, own: Mapping[str, str]) -> str:
        return key_of({**self._common, **own}) + ".score"

    def _read(self, name: str) -> Said | None:
        content = self.cache.read(name)
        return None if content is None else Said(**json.loads(content))

    def _write(self, name: str, found: Said) -> None:
        self.cache.write(name, json.dumps(asdict(found)).encode())

    @cached_property
    def _common(self) -> dict[str, str]:
        # Its quantizer's part is replaced for every assignment.
        plain = restricted(self.quantizer, {})
        parts = network_parts(self.network, self.data, plain, ())
        held = (x for x in self.model.state_dict().values() if isinstance(x, Tensor))
        return {**parts, "original": checksum(held), "score": self.score}


def _asked(precisions: Mapping[str, Precision], quantizer: Quantizer) -> dict[str, str]:
    """The part of a name that says what is asked about."""
    changed = {name: p for name, p in precisions.items() if p != ORIGINAL}
    chosen = "\n".join(f"{name} {p}" for name, p in sorted(changed.items()))
    return {**quantizer_key(restricted(quantizer, changed)), "precisions": chosen}
