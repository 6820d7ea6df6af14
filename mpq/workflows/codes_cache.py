"""Codes that a rounding found, kept on disk: what was rounded once is not rounded again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, final

from mpq._support.cache import Cache
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
        name = asked.weights[0].rounding.name
        for key, before, now in zip(asked.keys, kept, found, strict=True):
            if before is None:
                named = {f"{place:04d}": weight for place, weight in enumerate(now)}
                self.cache.write(f"{key}.codes", StoredWeights(name, named).content)
        return found

    def weights(self, key: str) -> list[StoredWeight] | None:
        """The codes that are kept under a key of ``ToRoundTogether``; ``None``: there are none.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self.cache.read(f"{key}.codes")
        if content is None:
            return None
        by_place = StoredWeights.from_content(content, "", sha256(content).hexdigest()).by_layer
        return [by_place[place] for place in sorted(by_place)]

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
