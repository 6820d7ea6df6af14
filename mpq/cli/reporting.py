"""The page of results that are on disk."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions, say


@app.command()
@reporting_errors
@taking
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A folder of `mpq search` or `mpq compare`, a file of `mpq profile`, or several "
            "folders of searches."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The page. Default: where it was; of several mpq-report.html."),
    ] = None,
    is_opened: Annotated[
        bool, typer.Option("--open", help="Show it in the default browser.")
    ] = False,
    *,
    talk: TalkOptions,
) -> None:
    """Make report.html again, from saved files alone; of several searches, compare them."""
    from mpq.workflows.page.report import report as run

    page = run(paths, output)
    talk.answer({"file": str(page)}, lambda _: None)
    talk.wrote([page])
    if is_opened and not _is_shown(page):
        say(f"no browser was found to open {page} (the variable BROWSER names one)")


def _is_shown(page: Path) -> bool:
    """Whether a browser took it."""
    try:
        return webbrowser.open(page.resolve().as_uri())
    except (webbrowser.Error, ValueError, IndexError):  # what is in BROWSER is no command
        return False
