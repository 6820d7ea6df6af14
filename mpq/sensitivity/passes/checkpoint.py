"""What an estimator has after some batches: kept on disk now and then, and added up."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from typing import Final, Protocol, TypeAlias, TypeVar, final

import numpy as np

from mpq._support.arrays import AnyArray
from mpq._support.cache import Cache

Batch = TypeVar("Batch")
State: TypeAlias = dict[str, AnyArray]
"""Numbers by name: sums over examples, or one row each, where the name ends in ``rows``."""

INTERVAL_S: Final = 30.0
"""Seconds between two files at least: what a killed run loses, beside a batch."""


class Resumable(Protocol):
    """What grows from batch to batch."""

    @property
    def state(self) -> State:
        """All that it has so far."""
        ...

    def restore(self, state: State) -> None:
        """Goes on from there."""
        ...


class Division(Protocol):
    """Which batches a process looks at, and what becomes of what it finds."""

    def left(self, batches: Iterable[Batch], parts: Mapping[str, Resumable]) -> Iterator[Batch]:
        """Batches that are this process's to look at.

        Args:
            batches: All of them, in the order of every run.
            parts: What their loop fills, by name.
        """
        ...


def left_batches(
    batches: Iterable[Batch], parts: Mapping[str, Resumable], division: Division | None
) -> Iterator[Batch]:
    """All batches, or those that a division leaves; see ``Division.left``."""
    return iter(batches) if division is None else division.left(batches, parts)


def state_of(parts: Mapping[str, Resumable]) -> State:
    """Of all parts, each entry under its part's name."""
    return {f"{name} {key}": x for name, part in parts.items() for key, x in part.state.items()}


def restore(parts: Mapping[str, Resumable], state: State) -> bool:
    """All parts go on from what ``state_of`` gave.

    Returns:
        Whether they could: a state may be of other parts, as of ``auto``'s sketch before all is
        measured. Then nothing is changed.
    """
    own: dict[str, State] = {name: {} for name in parts}
    for key, x in state.items():
        name, _, entry = key.partition(" ")
        if name not in own:
            return False
        own[name][entry] = x
    if not all(own.values()):
        return False
    for name, part in parts.items():
        part.restore(own[name])
    return True


def added(states: Sequence[State]) -> State:
    """The state after the batches of all, in their order: sums are added, rows put together."""
    return {
        key: np.concatenate([state[key] for state in states])
        if key.endswith("rows")
        else np.sum([state[key] for state in states], axis=0)
        for key in states[0]
    }


def packed(state: State) -> bytes:
    """As a file."""
    content = BytesIO()
    np.savez(content, allow_pickle=False, **state)
    return content.getvalue()


def unpacked(content: bytes) -> State:
    """What ``packed`` made a file of."""
    with np.load(BytesIO(content), allow_pickle=False) as found:
        return dict(found)


def after(num_batches: int, state: State) -> bytes:
    """A checkpoint's file, when so many batches are done."""
    return packed({**state, "batches": np.array(num_batches)})


@final
class Checkpoint:
    """A file in a cache, from which a run that was killed goes on.

    Args:
        cache: Where it is.
        name: Of the file: a checksum of all that determines the estimate.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache, self._name = cache, name
        self._written_s = time.monotonic()

    def left(self, batches: Iterable[Batch], parts: Mapping[str, Resumable]) -> Iterator[Batch]:
        """See ``Division``: those that no killed run has seen, whose findings are in the parts."""
        done = self._restored(parts)
        for index, batch in enumerate(islice(batches, done, None), start=done):
            yield batch
            if time.monotonic() - self._written_s >= INTERVAL_S:
                self._cache.write(self._name, after(index + 1, state_of(parts)))
                self._written_s = time.monotonic()

    def _restored(self, parts: Mapping[str, Resumable]) -> int:
        """How many batches are in the parts now.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self._cache.read(self._name)
        if content is None:
            return 0
        state = unpacked(content)
        done = int(state.pop("batches"))
        return done if restore(parts, state) else 0

    def remove(self) -> None:
        """Once there is an estimate.

        Raises:
            OutputError: If it cannot be removed.
        """
        self._cache.remove(self._name)
