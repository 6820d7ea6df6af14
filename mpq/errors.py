"""Everything that mpq raises on purpose.

MpqError
├── InputError (also a ValueError)    something that the user gave cannot be used
│   ├── ModelError                    the network: mode, weights, outputs, shapes
│   │   └── GradientError             it cannot be differentiated
│   ├── DataError                     calibration or held-out examples
│   ├── ScoreError                    the user's own score failed, or said no number
│   ├── PrecisionError                a precision's spelling
│   ├── LimitError                    a budget's spelling or unit
│   ├── UnknownNameError              no such device, estimator, solver, layer
│   ├── FileFormatError               a file is not what it says
│   └── MismatchError                 an assignment that belongs to another network
├── InfeasibleError                   no assignment meets the budgets
├── SolverError                       a solver ended without an answer
├── MissingDependencyError            an optional package is not installed
├── WorkerError                       another process that shares the work failed
├── MeasurementError                  times on this machine cannot be trusted
└── OutputError                       a result cannot be written

CallbackError                         one of the user's callbacks failed; no MpqError: whoever takes
                                      what cannot be done for a result must not take this for one
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MpqError(Exception):
    """Base of every error that mpq raises on purpose; its text is meant for the user."""


class InputError(MpqError, ValueError):
    """Something that the user gave cannot be used."""


class ModelError(InputError):
    """The network cannot be used as it is."""


class GradientError(ModelError):
    """The network cannot be differentiated.

    Args:
        cause: What stands in the way, as the rest of a sentence about the network.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"the network cannot be differentiated: {cause}; search with --sensitivity auto or "
            "measured, which need no gradients"
        )


class DataError(InputError):
    """The calibration or held-out examples cannot be used."""


class ScoreError(InputError):
    """The user's own score failed, or returned what is no finite number."""


class PrecisionError(InputError):
    """A precision is misspelled or makes no sense."""


class LimitError(InputError):
    """A limit is misspelled, has the wrong unit or refers to nothing."""


class FileFormatError(InputError):
    """A file is not what it says it is."""


class MismatchError(InputError):
    """An assignment belongs to another network."""


class UnknownNameError(InputError):
    """A name that mpq looks up does not exist.

    Args:
        what: What was looked up, such as ``"device"``.
        name: The name that was given.
        known: The names that exist.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"no {what} {name!r}{hint} (there are: {', '.join(names) or 'none'})")


class InfeasibleError(MpqError):
    """No assignment meets the budgets."""


class SolverError(MpqError):
    """A solver ended without an answer."""


class MissingDependencyError(MpqError):
    """An optional package is not installed."""


class WorkerError(MpqError):
    """Another process that shares the work failed, so that this one stops."""


class CallbackError(Exception):
    """One of the user's callbacks failed, which ends the work.

    Args:
        callback: Its class.
        event: What it was told.
        cause: What it raised.
    """

    def __init__(self, callback: str, event: str, cause: Exception) -> None:
        self.callback, self.event = callback, event
        told = str(cause) if isinstance(cause, MpqError) else f"{type(cause).__name__}: {cause}"
        super().__init__(f"the callback {callback} failed when it was told {event!r}: {told}")


class MeasurementError(MpqError):
    """Times that were measured on this machine cannot be trusted."""


class OutputError(MpqError):
    """A result cannot be written."""
