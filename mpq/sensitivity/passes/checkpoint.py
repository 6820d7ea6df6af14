"""What an estimator has after some batches, kept on disk now and then."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Final, Protocol, TypeAlias, TypeVar, final

import numpy as np

from mpq._support.arrays import AnyArray
from mpq._support.cache import Cache

Batch = TypeVar("Batch")
State: TypeAlias = dict[str, AnyArray]
"""Numbers by name."""

INTERVAL_S: Final = 30.0
"""Seconds between two files at least: what a killed run loses, beside a batch."""


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

    def load(self) -> State | None:
        """What was kept last; ``None``: nothing.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self._cache.read(self._name)
        if content is None:
            return None
        with np.load(BytesIO(content), allow_pickle=False) as found:
            return dict(found)

    def save(self, state: Callable[[], State]) -> None:
        """Keeps the state, if the last time is long enough ago.

        Raises:
            OutputError: If it cannot be written.
        """
        if time.monotonic() - self._written_s < INTERVAL_S:
            return
        content = BytesIO()
        np.savez(content, allow_pickle=False, **state())
        self._cache.write(self._name, content.getvalue())
        self._written_s = time.monotonic()

    def remove(self) -> None:
        """Once there is an estimate.

        Raises:
            OutputError: If it cannot be removed.
        """
        self._cache.remove(self._name)


class Resumable(Protocol):
    """What grows from batch to batch."""

    @property
    def state(self) -> State:
        """All that it has so far."""
        ...

    def restore(self, state: State) -> None:
        """Goes on from there."""
        ...


def left_batches(
    batches: Iterable[Batch], parts: Mapping[str, Resumable], checkpoint: Checkpoint | None
) -> Iterator[Batch]:
    """Batches that no killed run has seen; what was found of the others is in the parts first.

    Args:
        batches: All of them, in the order of every run.
        parts: What their loop fills, by name.
        checkpoint: Where the parts are kept; ``None``: nowhere.
    """
    done = 0 if checkpoint is None else _restored(parts, checkpoint)

    def state(count: int) -> State:
        found = {
            f"{name} {key}": x for name, part in parts.items() for key, x in part.state.items()
        }
        return {**found, "batches": np.array(count)}

    for index, batch in enumerate(batches):
        if index < done:
            continue
        yield batch
        if checkpoint is not None:
            checkpoint.save(partial(state, index + 1))


def _restored(parts: Mapping[str, Resumable], checkpoint: Checkpoint) -> int:
    """How many batches are in the parts now."""
    found = checkpoint.load()
    if found is None:
        return 0
    for name, part in parts.items():
        own = {key: x for key, x in found.items() if key.startswith(f"{name} ")}
        part.restore({key.partition(" ")[2]: x for key, x in own.items()})
    return int(found["batches"])
