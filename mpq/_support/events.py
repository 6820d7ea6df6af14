"""What happens in long work, told to whoever listens; to nobody elsewhere."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from mpq._support.ranks import is_other_rank
from mpq.errors import CallbackError, InputError


class Event(ABC):
    """One thing that happened. Each kind is a frozen dataclass."""

    name: ClassVar[str]
    """As logs call it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Its fields for JSON, times in seconds."""


class Callback(ABC):
    """Is told what happens while ``mpq.search`` and the other verbs work.

    It watches: nothing that it is told can be changed by it, and what it draws or seeds changes no
    answer. It runs in between, in the same thread, so that the work waits for it.
    """

    @abstractmethod
    def on(self, event: Event) -> None:
        """Takes note of an event; kinds that it does not know are to be passed over.

        An error that it raises ends the work with a ``CallbackError`` that names the callback.
        """


@final
@dataclass(frozen=True)
class Warned(Event):
    """Something that the user should know, and that stops nothing.

    Args:
        text: In a sentence.
    """

    text: str
    name: ClassVar[str] = "warned"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {"text": self.text}


@final
@dataclass(frozen=True)
class Ended(Event):
    """The last event, in whatever way the work ended.

    Args:
        error: Why there is no result: the error's class and text; ``None``: it did what was asked.
    """

    error: str | None = None
    name: ClassVar[str] = "ended"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {"error": self.error}


@final
@dataclass(frozen=True, eq=False)
class Audience:
    """Who listens within a block.

    Args:
        callbacks: In the order in which they are told.
        busy: Kinds of work that are under way, of which no second one is told inside.
    """

    callbacks: tuple[Callback, ...]
    busy: set[str] = field(default_factory=set)


# Of the context, not of the process: threads of the user's are not listened to.
_AUDIENCE: ContextVar[Audience | None] = ContextVar("mpq_audience", default=None)


def audience() -> Audience | None:
    """Who listens here; ``None``: nobody."""
    return _AUDIENCE.get()


@contextmanager
def listening(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Within this block these callbacks are told what happens, beside those of blocks around it.

    At its end they are told ``Ended``. Of several ranks the first one alone tells.

    Raises:
        InputError: If one of them is no callback.
        CallbackError: If one of them fails.
    """
    own = _checked(callbacks)
    if not own or is_other_rank():
        yield
        return
    around = _AUDIENCE.get()
    before, busy = ((), set[str]()) if around is None else (around.callbacks, around.busy)
    token = _AUDIENCE.set(Audience((*before, *own), busy))
    try:
        yield
    except BaseException as error:
        _end(own, error)
        raise
    else:
        _tell(own, Ended())
    finally:
        _AUDIENCE.reset(token)


def tell(event: Event) -> None:
    """Tells everybody who listens.

    Raises:
        CallbackError: If one of them fails.
    """
    listeners = _AUDIENCE.get()
    if listeners is not None:
        _tell(listeners.callbacks, event)


@contextmanager
def unheard() -> Iterator[None]:
    """Within this block nobody is told anything."""
    token = _AUDIENCE.set(None)
    try:
        yield
    finally:
        _AUDIENCE.reset(token)


def warn(text: str, stacklevel: int = 1) -> None:
    """A Python warning, of which callbacks are told.

    Args:
        text: In a sentence.
        stacklevel: Of ``warnings.warn``, counted from whoever calls this.
    """
    tell(Warned(text))
    warnings.warn(text, stacklevel=stacklevel + 1)


def _checked(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    if isinstance(callbacks, Callback):
        raise InputError(f"callbacks is a list: callbacks=[{type(callbacks).__name__}(...)]")
    if not isinstance(callbacks, Iterable):
        raise InputError(f"callbacks is a list, empty for none: [Progress()]; got {callbacks!r}")
    # Once: a generator would be empty the second time, and nobody be told anything.
    found = tuple(callbacks)
    for each in found:
        if not isinstance(each, Callback):
            raise InputError(
                f"a callback is an object of a class of mpq.callbacks.Callback; got {each!r}"
            )
    return found


def _tell(callbacks: Sequence[Callback], event: Event) -> None:
    # What a callback asks of us itself is not told: it would be told of its own asking for ever.
    with unheard():
        for callback in callbacks:
            try:
                callback.on(event)
            except Exception as error:
                raise CallbackError(type(callback).__name__, event.name, error) from error


def _end(callbacks: Sequence[Callback], error: BaseException) -> None:
    """Tells of a failure; what fails in being told is noted at the error, which stays the cause."""
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    for callback in callbacks:
        try:
            _tell([callback], Ended(text))
        except CallbackError as second:
            error.add_note(str(second))
