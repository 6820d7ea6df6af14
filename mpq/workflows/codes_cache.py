"""Codes that a rounding found, kept on disk: what was rounded once is not rounded again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, final

from mpq._support.cache import Cache
from mpq._support.pages import is_streaming
from mpq._support.tensor_file import array_entries, unnamed_file
from mpq.quantization.stored import StoredWeight, StoredWeights
from mpq.workflows.codes_keys import ToRoundTogether


@final
@dataclass(frozen=True)
class CodesCache:
    """Files of codes in a cache, one for each weight and one for each network.

    Args:
        cache: Where they are.
    """

    cache: Cache

    def codes(self, asked: ToRoundTogether) -> list[list[StoredWeight]]:
        """Codes of each weight and format: found before, or found now and kept.

        Where those of one weight are missing, all that go with it are found again.

        Raises:
            OutputError: If the cache cannot be read or written.
        """
        kept = [self.weights(key) for key in asked.keys]
        known = [weights for weights in kept if weights is not None]
        if len(known) == len(kept):
            return known
        found = asked.codes()
        for key, before, now in zip(asked.keys, kept, found, strict=True):
            if before is None:
                self.cache.write(f"{key}.codes", _named(now).content)
        if not is_streaming():
            return found
        return [
            self.weights(key) or outside_memory(now)
            for key, now in zip(asked.keys, found, strict=True)
        ]

    def weights(self, key: str) -> list[StoredWeight] | None:
        """The codes that are kept under a key of ``ToRoundTogether``; ``None``: there are none.

        While streaming they stay in their file, and are read from it as they are needed.

        Raises:
            OutputError: If the file cannot be read.
        """
        name = f"{key}.codes"
        if is_streaming():
            tensors = self.cache.mapped(name)
            return None if tensors is None else _in_order(StoredWeights.of_tensors(tensors, ""))
        content = self.cache.read(name)
        if content is None:
            return None
        return _in_order(StoredWeights.from_content(content, "", sha256(content).hexdigest()))

    def record(self, key: str) -> dict[str, Any] | None:
        """What is kept of a whole network; ``None``: nothing.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self.cache.read(f"{key}.network")
        return None if content is None else dict(json.loads(content))

    def keep_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Keeps something of a whole network, as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        self.cache.write(f"{key}.network", json.dumps(record).encode())


def outside_memory(weights: Sequence[StoredWeight]) -> list[StoredWeight]:
    """The same codes, while streaming in a file of the temporary folder, which has no name.

    Raises:
        OutputError: If there is no room for it.
    """
    if not is_streaming():
        return list(weights)
    return _in_order(
        StoredWeights.of_tensors(unnamed_file(array_entries(_named(weights).tensors)), "")
    )


def _named(weights: Sequence[StoredWeight]) -> StoredWeights:
    """Of one weight in several formats, by their places."""
    return StoredWeights("", {f"{place:04d}": each for place, each in enumerate(weights)})


def _in_order(weights: StoredWeights) -> list[StoredWeight]:
    return [weights.by_layer[place] for place in sorted(weights.by_layer)]
