"""What options make of a search: a share of its estimate, or a plan."""

from mpq.cli.planning import tell_plan
from mpq.cli.requests import SearchOptions
from mpq.cli.sharing import leave_part
from mpq.cli.talk import TalkOptions


def is_done_instead(options: SearchOptions, talk: TalkOptions, has_question: bool) -> bool:
    """Whether an option asked for something else than a search, which is then done.

    Args:
        options: Of the command.
        talk: How much is said.
        has_question: Whether the command has to have a limit or an objective.
    """
    options.effort.check()
    if options.effort.shard is not None:
        leave_part(options, talk)
    elif options.effort.dry_run:
        tell_plan(options, talk, has_question)
    else:
        return False
    return True
