"""Standard output for our answer alone, whatever libraries and the user's own code print."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from threading import RLock
from typing import TextIO

_answers: ContextVar[TextIO | None] = ContextVar("mpq_answers", default=None)
_descriptors = RLock()  # file descriptors belong to the process: one thread changes them at a time
_STDOUT, _STDERR = 1, 2


def answer_stream() -> TextIO:
    """Where our own answer goes: the real standard output within ``answers_only``."""
    return _answers.get() or sys.stdout


@contextmanager
def answers_only() -> Iterator[None]:
    """Within this block only what is written to ``answer_stream`` reaches standard output.

    Everything else goes to standard error: ``print`` of the user's model code, and what compiled
    libraries write to the file descriptor without asking Python.
    """
    answers, is_real = _own_stream()
    token = _answers.set(answers)
    try:
        with stdout_silenced(), redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.reset(token)
        answers.flush()
        if is_real:
            answers.close()


def _own_stream() -> tuple[TextIO, bool]:
    """A stream on a copy of the descriptor, or ``sys.stdout`` where that is not on it (tests)."""
    try:
        if sys.stdout.fileno() != _STDOUT:
            return sys.stdout, False
        copy = os.dup(_STDOUT)
    except (OSError, ValueError, AttributeError):  # closed, or a stream of Python's own
        return sys.stdout, False
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    return os.fdopen(copy, "w", encoding=encoding, errors=errors), True


@contextmanager
def stdout_silenced() -> Iterator[None]:
    """Within this block what libraries write to standard output goes to standard error.

    HiGHS 1.16 prints its banner when its first object is made, before any option can be set. Other
    threads' output goes there too meanwhile: a descriptor belongs to the whole process.
    """
    with _descriptors:
        _flush()
        try:
            kept = os.dup(_STDOUT)
        except OSError:  # closed: nothing can be printed there
            yield
            return
        try:
            with suppress(OSError):  # no standard error either
                os.dup2(_STDERR, _STDOUT)
            yield
        finally:
            _flush()  # what C's stdio still holds belongs to the block
            os.dup2(kept, _STDOUT)
            os.close(kept)


def _flush() -> None:
    """Empties the buffers of Python and of C's stdio, so that nothing changes its destination."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    library.fflush(None)
