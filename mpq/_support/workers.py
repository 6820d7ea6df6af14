"""Where work that splits is done: in this process, by the ranks of ``torchrun``, or by Ray."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, final

from mpq.errors import InputError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Found = TypeVar("Found")


@final
@dataclass(frozen=True)
class Workers:
    """How workers were asked for.

    Args:
        kind: ``torchrun`` or ``ray``.
        address: Of a Ray cluster, ``ray://HOST:PORT``; empty: one that is started here, or that
            this machine belongs to.
        count: Workers of a Ray cluster that is started here; 0: as many as there are processors.
    """

    kind: str
    address: str = ""
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``torchrun``, ``ray``, ``ray:2`` or ``ray://HOST:PORT``.

        >>> Workers.parse("ray:2")
        Workers(kind='ray', address='', count=2)

        Raises:
            InputError: If it is nothing like that.
        """
        if text in ("torchrun", "ray"):
            return cls(text)
        if re.fullmatch(r"ray:[1-9]\d{0,4}", text, re.ASCII):
            return cls("ray", count=int(text.partition(":")[2]))
        if re.fullmatch(r"ray://[^\s/]+:\d+", text):
            return cls("ray", address=text)
        raise InputError(
            f"workers {text!r}: write ray (a cluster on this machine), ray:2 (one of two workers), "
            "ray://HOST:PORT (one that runs), or torchrun (the processes that it started)"
        )


class TaskWorkers(Protocol):
    """Other processes that do tasks, each of them whenever one has time."""

    @property
    def count(self) -> int:
        """How many tasks run at a time."""
        ...

    def sent(
        self, shared: Shared, call: Callable[[Shared, Task], Found]
    ) -> Callable[[Sequence[Task]], Iterator[Found]]:
        """Sends what all tasks need, once for any number of rounds of tasks.

        Args:
            shared: What all tasks need; each worker takes it once.
            call: Does a task; a function of a module. It may be done twice, if a worker is killed.

        Returns:
            A function of tasks, which gives what they give, in the order in which they are done.
            It raises what a task raised, and ``WorkerError`` if workers die again and again.

        Raises:
            WorkerError: If it cannot be sent, or no worker can be reached.
        """
        ...
