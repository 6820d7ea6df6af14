"""report.html beside a result's other files."""

from dataclasses import replace
from pathlib import Path

from mpq.report.frontier import Frontier
from mpq.report.page.made import MADE_FILE
from mpq.report.page.render import page_of
from mpq.report.save import PAGE_FILE, write_drawn
from mpq.workflows.page.facts import facts_of
from mpq.workflows.searched import Searched


def page_beside(result: Searched, frontier: Frontier, folder: Path) -> list[Path]:
    """Writes made.json and the page of a result beside its files.

    Args:
        result: As it was saved there.
        frontier: The one that was drawn.
        folder: Of its files.

    Raises:
        OutputError: If a file cannot be written.
    """

    def page() -> bytes:
        return page_of(facts_of(result, with_others(result, frontier)))

    # As any picture: what it stumbles over costs no data.
    files = {MADE_FILE: result.made.to_json(result.run_id).encode()}
    return write_drawn(folder, files, {PAGE_FILE: page})


def with_others(result: Searched, frontier: Frontier) -> Frontier:
    """With the answer and the uniform precisions beside it, as far as losses are of one kind.

    Beside predicted points the answer's loss is predicted, too, whatever its solver measured.
    """
    others = result.beside(frontier.resource)
    if frontier.is_by_trials:
        # Those of uniform precisions are predicted only.
        answer = (point for point in others if point.label == "result")
        others = tuple(replace(point, loss=result.solution.loss) for point in answer)
    return replace(frontier, others=others)
