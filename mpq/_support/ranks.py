"""Processes of ``torch.distributed`` that do one piece of work together."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeVar, final

from mpq.errors import InputError, WorkerError

Value = TypeVar("Value")

WAIT: Final = timedelta(days=7)
"""How long a rank waits for the others. Where one has died, ``torchrun`` ends those that wait."""


@final
class Ranks:
    """All processes of a group, in lockstep: what one calls, all of them call.

    Args:
        rank: This process, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._serve: Callable[[Any], Any] | None = None

    @classmethod
    def joined(cls) -> Self:
        """Those of the default group.

        Raises:
            InputError: If this process has joined none.
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            raise InputError(
                "workers='torchrun' is for processes that torch.distributed has joined: start them "
                "by `torchrun --nproc-per-node 2 -m mpq search ...`, or call "
                "torch.distributed.init_process_group first"
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that solves, writes and talks."""
        return self.rank == 0

    def own(self, items: Iterable[Value]) -> Iterator[Value]:
        """Every so-many-th of them, from this rank's place on."""
        return islice(items, self.rank, None, self.size)

    def has(self, index: int) -> bool:
        """Whether an item is among this rank's own."""
        return index % self.size == self.rank

    def gathered(self, value: Value) -> list[Value]:
        """What every rank has, by rank, for all of them; pickled."""
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: Value | None) -> Any:
        """What the first rank has, for all of them; pickled."""
        from torch import distributed

        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """What every rank's own work gives, for all of them.

        Raises:
            Exception: What this rank's work raised.
            WorkerError: If another's raised: nobody waits for one that failed.
        """
        try:
            own: tuple[Any, str] = work(), ""
        except Exception as error:  # the others are told, whatever it is
            self.gathered((None, f"{type(error).__name__}: {error}"))
            raise
        found = self.gathered(own)
        failed = {rank: why for rank, (_, why) in enumerate(found) if why}
        if failed:
            raise WorkerError("; ".join(f"rank {rank} failed: {x}" for rank, x in failed.items()))
        return [value for value, _ in found]

    def led(self, work: Callable[[], Value], serve: Callable[[Any], Any]) -> Value:
        """What the first rank's work gives, while all do what it asks for (``ask``).

        Args:
            work: Done by the first rank alone.
            serve: What each rank does when the first one asks.

        Raises:
            Exception: What the work raised, or this rank's ``serve``.
            WorkerError: If another's raised: nobody waits for one that failed.
        """
        self._serve = serve
        try:
            return self._leading(work) if self.is_first else self._following(serve)
        finally:
            self._serve = None

    def _leading(self, work: Callable[[], Value]) -> Value:
        try:
            found = work()
        except Exception as error:
            if self.is_leading:  # the others are told, whatever it is
                self.from_first(("failed", f"{type(error).__name__}: {error}"))
            raise
        self.from_first(("done", found))
        return found

    def _following(self, serve: Callable[[Any], Any]) -> Any:
        while True:
            what, value = self.from_first(None)
            if what == "done":
                return value
            if what == "failed":
                raise WorkerError(f"rank 0 failed: {value}")
            self.together(partial(serve, value))

    @property
    def is_leading(self) -> bool:
        """Whether this is the first rank within ``led``, for whose questions the others wait."""
        return self.is_first and self._serve is not None

    def ask(self, asked: Any) -> list[Any]:
        """What every rank's ``serve`` gives, by rank; for the first one, within ``led``.

        Raises:
            Exception: What this rank's ``serve`` raised.
            WorkerError: If another's raised.
        """
        serve = self._serve
        assert serve is not None
        self.from_first(("asked", asked))
        try:
            return self.together(partial(serve, asked))
        except Exception:
            self._serve = None  # all have heard, and nobody waits for another question
            raise

    def add(self, tensor: Any) -> None:
        """The sum of all ranks' tensors, in place; on the CPU or by the group's own backend."""
        from torch import distributed

        distributed.all_reduce(tensor)


def is_launched() -> bool:
    """Whether ``torchrun`` started this process, and more than one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_other_rank() -> bool:
    """Whether another process than this one solves, writes and talks."""
    return is_launched() and os.environ.get("RANK") != "0"


@contextmanager
def launched() -> Iterator[Ranks]:
    """Within this block the processes that ``torchrun`` started are one group, by gloo.

    A rank that fails leaves the block with its error; ``torchrun`` then ends the others.
    """
    from torch import distributed

    distributed.init_process_group("gloo", timeout=WAIT)
    try:
        yield Ranks.joined()
    finally:
        distributed.destroy_process_group()
