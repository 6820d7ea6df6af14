"""Batches by the ranks of ``torchrun``: each looks at its own, and all have what is found."""

from collections.abc import Iterable, Iterator, Mapping
from typing import final

from mpq._support.ranks import Ranks
from mpq.sensitivity.passes.checkpoint import Batch, Resumable, added, restore, state_of


@final
class RankShare:
    """A ``Division``: every so-many-th batch, and what all found once these are done.

    Args:
        ranks: Who shares the batches.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def left(self, batches: Iterable[Batch], parts: Mapping[str, Resumable]) -> Iterator[Batch]:
        """See ``Division``."""
        yield from self._ranks.own(batches)
        is_restored = restore(parts, added(self._ranks.gathered(state_of(parts))))
        assert is_restored
