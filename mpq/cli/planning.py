"""What a search will take, told instead of searching."""

from typing import TYPE_CHECKING

from mpq.cli.requests import SearchOptions
from mpq.cli.talk import TalkOptions
from mpq.cli.watching import WatchOptions

if TYPE_CHECKING:
    from rich.console import Console

    from mpq.workflows.plan import Plan


def tell_plan(
    options: SearchOptions, watch: WatchOptions, talk: TalkOptions, has_question: bool
) -> None:
    """What a command with ``--dry-run`` does instead of a search."""
    with watch.watched(talk, can_keep=False):
        plan = options.plan(has_question)
    talk.answer(plan.to_dict(), lambda console: _print_plan(plan, console))


def _print_plan(plan: "Plan", console: "Console") -> None:
    from rich.table import Table

    from mpq._support.durations import in_words

    counts = f"{plan.num_calibration} calibration and {plan.num_held_out} held-out examples"
    table = Table("phase", title=f"What it will take, {counts}")
    for column in ("time", "memory, MiB"):
        table.add_column(column, justify="right")
    for row in plan.to_dict()["phases"]:
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        table.add_row(row["phase"], in_words(row["seconds"]), memory)
    table.add_section()
    memory = "" if plan.peak_bytes is None else f"{plan.peak_bytes / 2**20:.0f}"
    table.add_row("all", in_words(plan.total_s), memory)
    console.print(table)
    if plan.calls is not None:
        console.print(plan.calls.sentence, markup=False)
    if plan.unplanned:
        console.print(f"not in it: {', '.join(plan.unplanned)}", markup=False)
