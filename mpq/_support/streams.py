"""Standard output for our answer alone, whatever libraries and the user's own code print."""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from threading import Lock
from typing import TextIO, final

_answers: ContextVar[TextIO | None] = ContextVar("mpq_answers", default=None)
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
    # First: a copy of the descriptor that is made within the detour leads to standard error.
    answers, is_real = _own_stream()
    token = _answers.set(answers)
    try:
        # The redirection is for a `sys.stdout` that is not on the descriptor (notebooks, tests). It
        # ends before the detour, whose last flush then finds the stream that was there before.
        with stdout_silenced(), redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.reset(token)
        try:
            answers.flush()
        except OSError:
            # Nobody reads it, or the disk is full: what is left would be tried again at every end.
            if is_real:
                _discard(answers)
            raise
        finally:
            # Otherwise it is the caller's own stream, which must stay open.
            if is_real:
                answers.close()


def _own_stream() -> tuple[TextIO, bool]:
    """A stream on a copy of the descriptor, or ``sys.stdout`` where that is not on it (tests)."""
    if sys.stdout is None:  # closed before Python started: there is nobody to answer
        return io.StringIO(), False
    try:
        if sys.stdout.fileno() != _STDOUT:
            return sys.stdout, False
        _open_stderr()
        copy = os.dup(_STDOUT)
    except (OSError, ValueError, AttributeError):  # closed, or a stream of Python's own
        return sys.stdout, False
    # As for the stream that it stands for: `PYTHONIOENCODING` may have set them.
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    return os.fdopen(copy, "w", encoding=encoding, errors=errors), True


def _discard(stream: TextIO) -> None:
    """What the stream still holds goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def stdout_silenced() -> Iterator[None]:
    """Within this block what libraries write to standard output goes to standard error.

    Other threads' output goes there too meanwhile: a descriptor belongs to the whole process.
    """
    _detour.enter()
    try:
        yield
    finally:
        _detour.leave()


@contextmanager
def stdout_discarded() -> Iterator[None]:
    """Within this block, which is short, standard output goes nowhere: that of all threads."""
    with _detour.halted():
        _flush()
        try:
            kept = os.dup(_STDOUT)
        except OSError:  # closed: nothing is printed there anyway
            yield
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _STDOUT)
        os.close(null)
        try:
            yield
        finally:
            _flush()  # what C's stdio still holds belongs to the block
            os.dup2(kept, _STDOUT)
            os.close(kept)


def end_answers() -> None:
    """From here to the end of the process nothing reaches standard output: its answer is given.

    What libraries and the user's own code print when Python exits would follow it.
    """
    # Entered and never left, so that no block that ends later leads the descriptor back.
    try:
        _detour.enter()
    except OSError:
        # It cannot be written to any more: Python would try, and complain, once again at its exit.
        _discard(sys.stdout)
    sys.stdout = sys.stderr


@final
class _Detour:
    """Standard output's descriptor, led to standard error while any block asks for it.

    Blocks of several threads overlap: the first leads it away, the last back. The lock is held
    only for that, so that threads solve side by side, and a thread that solves while a command
    waits for it is not locked out by the command's own block.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks = 0
        self._kept: int | None = None

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Within this block nobody leads it anywhere."""
        with self._lock:
            yield

    def enter(self) -> None:
        """Leads it away, unless it is already."""
        with self._lock:
            if not self._blocks:
                self._kept = _led_away()
            self._blocks += 1

    def leave(self) -> None:
        """Leads it back, if no other block is left."""
        with self._lock:
            self._blocks -= 1
            if self._blocks or self._kept is None:
                return
            try:
                _flush()  # what C's stdio still holds belongs to the block
            finally:
                os.dup2(self._kept, _STDOUT)
                os.close(self._kept)


_detour = _Detour()


def _led_away() -> int | None:
    """A copy of standard output's descriptor, or ``None`` if it is closed."""
    # What is still buffered was printed before, and would come out at standard error.
    _flush()
    try:
        os.fstat(_STDOUT)
    except OSError:  # nothing can be printed there
        return None
    _open_stderr()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    return kept


def _open_stderr() -> None:
    """Where standard error is closed, nothing: else the next descriptor would take its number.

    That next one is our copy of standard output, and what is led away would end where it began.
    """
    try:
        os.fstat(_STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != _STDERR:
            os.dup2(null, _STDERR)
            os.close(null)


def _flush() -> None:
    """Empties the buffers of Python and of C's stdio, so that nothing changes its destination."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    # `CDLL(None)` is the running process, whose C library has the buffers.
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    library.fflush(None)
