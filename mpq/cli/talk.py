"""What a command says: its answer on standard output, everything else only where it is wanted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpq._support.streams import answer_stream
from mpq.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TalkOptions:
    """How much is said, and as what."""

    quiet: o.Quiet = False
    as_json: o.AsJson = False
    debug: o.Debug = False

    def answer(self, answer: Any, show: "Callable[[Console], None]") -> None:
        """Prints the answer.

        Args:
            answer: What ``json`` can write, or JSON as text.
            show: Prints it for people on the console that it is given; not called for JSON.
        """
        from mpq.cli.console import new_console

        if self.as_json:
            # Texts are JSON already: encoding them again would put all of it into quotes.
            write(answer if isinstance(answer, str) else json.dumps(answer, indent=1))
        else:
            show(new_console())

    def wrote(self, files: Sequence[Path]) -> None:
        """Says which files were written, one line for each."""
        from mpq.cli.console import new_console

        # JSON is the whole of standard output: a line after it would stop whoever parses it.
        if self.quiet or self.as_json:
            return
        console = new_console()
        for file in files:
            console.print(f"wrote {file}", highlight=False, markup=False)


def say(text: str) -> None:
    """Writes a line to standard error, beside an answer."""
    typer.echo(text, err=True)


def write(text: str) -> None:
    """Writes lines to standard output."""
    answer_stream().write(f"{text}\n")
