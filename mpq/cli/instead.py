"""What options make of a search: a share of its estimate, or a plan."""

from mpq.cli.planning import tell_plan
from mpq.cli.requests import SearchOptions
from mpq.cli.sharing import leave_part
from mpq.cli.talk import TalkOptions
from mpq.cli.watching import WatchOptions


def is_done_instead(
    options: SearchOptions, watch: WatchOptions, talk: TalkOptions, has_question: bool
) -> bool:
    """Whether an option asked for something else than a search, which is then done.

    Args:
        options: Of the command.
        watch: Where events of it go.
        talk: How much is said.
        has_question: Whether the command has to have a limit or an objective.
    """
    options.effort.check()
    if options.effort.shard is not None:
        leave_part(options, watch, talk)
    elif options.effort.dry_run:
        tell_plan(options, watch, talk, has_question)
    else:
        return False
    return True
