"""Processes of ``torch.distributed`` that do one piece of work together."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
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

    def by_first(self, work: Callable[[], Value]) -> Value:
        """What the first rank's work gives, while the others wait.

        Raises:
            Exception: What the work raised.
            WorkerError: In the others, if it raised.
        """
        done: list[Any] = self.together(lambda: work() if self.is_first else None)
        first: Value = done[0]
        return first

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
