"""Estimates that several jobs share."""

from pathlib import Path

from mpq.cli import options as o
from mpq.cli.app import app, reporting_errors
from mpq.cli.requests import SearchOptions
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions


@app.command()
@reporting_errors
@taking
def merge(parts: o.PartFiles, cache: o.MergedInto = None, *, talk: TalkOptions) -> None:
    """Put together what jobs with --shard left, where they share no folder; then search there."""
    from mpq.workflows.shards import merge as run

    _told(run(parts, cache), talk)


def leave_part(options: SearchOptions, talk: TalkOptions) -> None:
    """What a command with ``--shard`` does instead of a search."""
    assert options.effort.shard is not None
    with talk.progress():
        part = options.run_shard(options.effort.shard)
    _told(part, talk)


def _told(file: Path, talk: TalkOptions) -> None:
    talk.answer({"file": str(file)}, lambda _: None)
    talk.wrote([file])
