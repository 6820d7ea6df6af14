"""The command line's frame: the application, and errors as one line."""

import errno
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from mpq._support.names import for_people
from mpq._support.streams import answers_only

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def command_words() -> tuple[str, ...]:
    """The command as it was given, for whoever wants it again."""
    return _WORDS.get()


@contextmanager
def _readers_may_leave() -> Iterator[None]:
    """Whoever reads the answer has enough of it (``| head``): no error, but not all was taken."""
    try:
        yield
    except BrokenPipeError as error:
        # 128 + 13, as shells report a process that SIGPIPE ended.
        raise typer.Exit(141) from error


class _Commands(TyperGroup):
    """All commands; none takes an empty value.

    An unset variable of a shell leaves one, and most options would mean something else by it:
    ``--output ""`` the current folder, ``--data ""`` the built-in examples.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See ``click.Group.parse_args``; its context is typer's own class in newer releases."""
        _WORDS.set(("mpq", *args))
        for before, arg in zip(["", *args], args, strict=False):
            option, separator, value = arg.partition("=")
            is_written_out = option.startswith("--") and bool(separator)
            if not (value if is_written_out else arg).strip():
                name = option if is_written_out else before
                where = f" after {name}" if name else ""
                # Behind a value stands an argument of the command's, or one word too many.
                choice = ", or leave the option out" if name.startswith("-") else ""
                _fail(
                    f"an empty value{where} (an unset variable of the shell?): give one{choice}",
                    code=2,
                )
        # Of the help and the version, which are answered here; typer itself would end with 1.
        with _readers_may_leave():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """See ``click.Group.invoke``: a command's help is answered within."""
        with _readers_may_leave():
            return super().invoke(ctx)


app = typer.Typer(
    name="mpq",
    help="Mixed-precision quantization search: a bit width per layer for a budget on a device.",
    epilog="Exit codes: 0 done; 1 an error in the network's or data's own code, or in mpq; 2 what "
    "was given cannot be used; 3 no assignment meets the limits; 130 interrupted; 141 nobody read "
    "the answer to its end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    cls=_Commands,
    rich_markup_mode=None,  # plain help comes in half the time
)

SHARED = ("search", "frontier")
"""Commands whose work several processes can share, as ``torchrun`` starts them."""

Command = TypeVar("Command", bound=Callable[..., None])


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("mpq"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What ``mpq`` takes without a command."""
    # Its callback has answered already.
    del version


def reporting_errors(command: Command) -> Command:
    """Turns errors into one line on standard error and an exit code; ``--debug`` shows all."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        from mpq._support.ranks import is_launched, is_other_rank
        from mpq.errors import CallbackError, InfeasibleError, MpqError

        if is_launched() and command.__name__ not in SHARED:
            _fail(f"torchrun shares the work of {' and '.join(SHARED)}; start this without", code=2)
        try:
            # What the user's model prints must not get into an answer that is piped on.
            with answers_only():
                command(*args, debug=debug, **kwargs)
        except KeyboardInterrupt as error:
            if debug:
                raise
            if is_other_rank():  # the first process of torchrun tells it
                raise typer.Exit(130) from None
            # What the work has noted there of itself: see `watching`.
            told = "".join(f"\n{line}" for line in getattr(error, "__notes__", ()))
            # 128 + 2, as shells report a process that SIGINT ended.
            _fail("interrupted; no half-written file is left", code=130, more=told)
        except InfeasibleError as error:
            if debug:
                raise
            if kwargs.get("as_json"):
                typer.echo(json.dumps({"status": "infeasible", "error": str(error)}))
            _fail(str(error), code=3)
        except (MpqError, CallbackError) as error:
            if debug:
                raise
            _fail(str(error), code=2)
        except OSError as error:
            if debug or isinstance(error, BrokenPipeError):  # which `_Commands` knows
                raise
            _fail_to_write(error)
        # A RuntimeError by class: the clause below would take it for a bug.
        except typer.Exit:
            raise
        except Exception as error:  # the user's own model or data code, or a bug of ours
            if debug:
                raise
            _fail(f"{type(error).__name__}: {error} (--debug shows where)", code=1)

    return run  # type: ignore[return-value]


def _fail_to_write(error: OSError) -> None:
    """What is left of errors in writing: files of ours have theirs told already."""
    if error.filename is None and error.errno == errno.ENOSPC:
        _fail("cannot write the answer to standard output: no space is left there", code=2)
    _fail(f"{type(error).__name__}: {error} (--debug shows where)", code=1)


def _fail(message: str, code: int, more: str = "") -> None:
    # On one line, however many the exception's text has.
    typer.echo(f"error: {for_people(' '.join(message.split()))}{for_people(more)}", err=True)
    raise typer.Exit(code)
