"""Estimates that several jobs or processes share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli import options as o
from mpq.cli.app import app, reporting_errors
from mpq.cli.requests import SearchOptions
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions
from mpq.cli.watching import Kept, WatchOptions, kept_in

if TYPE_CHECKING:
    from mpq._support.phases import Phases


@app.command()
@reporting_errors
@taking
def merge(parts: o.PartFiles, cache: o.MergedInto = None, *, talk: TalkOptions) -> None:
    """Put together what jobs with --shard left, where they share no folder; then search there."""
    from mpq.workflows.shards import merge as run

    _told(run(parts, cache), talk)


@contextmanager
def working(
    folder: Path, watch: WatchOptions, talk: TalkOptions, kept: Sequence[Kept]
) -> "Iterator[Phases]":
    """A folder for results, watched work, in the one process that has them; the others join in.

    Args:
        folder: Where results will be.
        watch: Where events go.
        talk: Whether there is a display.
        kept: What an interruption leaves on disk.
    """
    from mpq._support.files import prepared_folder
    from mpq._support.ranks import is_launched, is_other_rank, launched

    if is_other_rank():
        with launched(), watch.watched(talk) as phases:  # nobody is told
            yield phases
    elif is_launched():
        with launched(), prepared_folder(folder), watch.watched(talk, kept) as phases:
            yield phases
    else:
        # First of all: a folder that cannot be written to is better known before hours of work.
        with prepared_folder(folder), watch.watched(talk, kept) as phases:
            yield phases


def leave_part(options: SearchOptions, watch: WatchOptions, talk: TalkOptions) -> None:
    """What a command with ``--shard`` does instead of a search."""
    from mpq._support.ranks import is_launched
    from mpq.errors import InputError

    assert options.effort.shard is not None
    if is_launched():
        raise InputError(
            "torchrun and --shard both split the estimate: start jobs with --shard without torchrun"
        )
    with watch.watched(talk, kept_in(options.asked.ranges.cache)):
        part = options.run_shard(options.effort.shard)
    _told(part, talk)


def _told(file: Path, talk: TalkOptions) -> None:
    talk.answer({"file": str(file)}, lambda _: None)
    talk.wrote([file])
