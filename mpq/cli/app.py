"""The command line's frame: the application, and errors as one line."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from mpq._support.streams import answers_only

app = typer.Typer(
    name="mpq",
    help="Mixed-precision quantization search: a bit width per layer for a budget on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
)

Command = TypeVar("Command", bound=Callable[..., None])


def reporting_errors(command: Command) -> Command:
    """Turns errors into one line on standard error and an exit code; ``--debug`` shows all."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        from mpq.errors import MpqError

        try:
            # What the user's model prints must not get into an answer that is piped on.
            with answers_only():
                command(*args, debug=debug, **kwargs)
        except KeyboardInterrupt:
            if debug:
                raise
            # 128 + 2, as shells report a process that SIGINT ended.
            _fail("interrupted; no half-written file is left", code=130)
        except MpqError as error:
            if debug:
                raise
            _fail(str(error), code=2)
        # A RuntimeError by class: the clause below would take it for a bug.
        except typer.Exit:
            raise
        except Exception as error:  # the user's own model or data code, or a bug of ours
            if debug:
                raise
            _fail(f"{type(error).__name__}: {error} (--debug shows where)", code=1)

    return run  # type: ignore[return-value]


def _fail(message: str, code: int) -> None:
    # On one line, however many the exception's text has.
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
