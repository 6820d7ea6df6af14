"""What finds a point of a frontier again: the search's own command or call, with its limits."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Final

from mpq.problem.limits import written_limit
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.searched import Searched

_SEARCHING: Final = ("search", "frontier")
"""Commands that take the limits of a search."""
_OF_THE_ANSWER: Final = (
    "--minimize",
    "--max-loss",
    "--max-measured-loss",
    "--max-accuracy-drop",
    "--max-score-drop",
    "--refine",
    "--alternatives",
    "--differing",
)
"""Options with a value that change the answer, and not the points: these are solved for alone."""
_SAFEGUARD: Final = ("--safeguard", "--no-safeguard")
"""The same without a value."""


def command_of(result: Searched, point: FrontierPoint, frontier: Frontier) -> str:
    """What finds the answer, or a point of the frontier, again; empty where nothing does."""
    is_answer, command = point.label == "result", result.made.command
    if command:
        # The words have the other budgets already.
        limit = written_limit(frontier.resource, point.cost, frontier.unit)
        return shlex.join(command) if is_answer else command_for(command, limit, "point")
    limits = {budget.resource: budget.limit for budget in result.problem.budgets}
    own = {} if is_answer else {frontier.resource: point.cost}
    # Rounds after the one that was dropped change nothing.
    rounds = len(result.provenance.refinements) if is_answer else 0
    return call_for({**limits, **own}, _methods(result), is_answer, rounds)


def _methods(result: Searched) -> dict[str, str]:
    """What a search from Python was told beside the task; a recipe says all of it."""
    made = result.provenance
    if made.recipe is not None:
        return {"recipe": made.recipe.name}
    asked = {"sensitivity": (made.estimator, ESTIMATOR), "solver": (made.solver, SOLVER)}
    return {name: found for name, (found, default) in asked.items() if found != default}


def command_for(command: Sequence[str], limit: str, label: str) -> str:
    """The search's command with another limit, or nothing where it finds no other points.

    Without a safeguard, which may take another answer than the point.

    Args:
        command: Words of the search, whose limit of the same resource is replaced.
        limit: On what the point uses, as ``written_limit`` has it; empty: it cannot be written.
        label: A word for the folder, so that nothing is overwritten.
    """
    program, verb, *rest = command
    # A tuning of a saved answer has no other points.
    if verb not in _SEARCHING or not limit:
        return ""
    words = [program, "search", *_without(rest, limit.partition("=")[0])]
    return shlex.join(_elsewhere([*words, "--no-safeguard", "--limit", limit], label))


def call_for(
    limits: Mapping[str, float], methods: Mapping[str, str], is_answer: bool, rounds: int = 0
) -> str:
    """A search that was no command, as Python calls it again.

    Args:
        limits: Resource to the amount that a point uses, or to its budget.
        methods: Names of its other arguments to what they are, where they are not the defaults.
        is_answer: Whether the answer is wanted, which a safeguard is a part of.
        rounds: Of refinement; points have none.
    """
    given = ", ".join(f'"{name}": {amount!r}' for name, amount in limits.items())
    others = "".join(f', {name}="{text}"' for name, text in methods.items())
    others += f", refine={rounds}" if rounds else ""
    return f"mpq.search(task, {{{given}}}{others}{'' if is_answer else ', safeguard=False'})"


def _without(command: Sequence[str], resource: str) -> Iterator[str]:
    """Without ``--limit`` of this resource, and without what is the answer's alone."""
    words = iter(command)
    for word in words:
        option, separator, value = word.partition("=")
        if option in _SAFEGUARD:
            continue
        if option != "--limit" and option not in _OF_THE_ANSWER:
            yield word
            continue
        given = value if separator else next(words, "")
        if option == "--limit" and given.partition("=")[0].strip() != resource:
            yield from (option, given)


def _elsewhere(words: Sequence[str], label: str) -> list[str]:
    """With a folder of its own behind ``--output``."""
    found, output = [], "mpq-run"
    iterator = iter(words)
    for word in iterator:
        option, separator, value = word.partition("=")
        if option == "--output":
            output = value if separator else next(iterator, output)
        else:
            found.append(word)
    folder = PurePath(output)
    return [*found, "--output", str(folder.with_name(f"{folder.name}-{label}"))]
