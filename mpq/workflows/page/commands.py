"""What finds a point of a frontier again: the search's own command or call, with its limits."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isnan
from pathlib import PurePath
from typing import Final

from mpq.problem.limits import written_limit
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.points import FRONTIER
from mpq.workflows.searched import Searched

_SEARCHING: Final = ("search", "frontier")
"""Commands that take the limits of a search."""
_OF_THE_ANSWER: Final = frozenset({
    "--minimize",
    "--max-loss",
    "--max-measured-loss",
    "--max-accuracy-drop",
    "--max-score-drop",
    "--refine",
    "--alternatives",
    "--differing",
})  # fmt: skip
"""Options with a value that change the answer, and not the points: these are solved for alone."""
_OF_CANDIDATES: Final = frozenset({"--precisions", "--fix", "--allow", "--ends"})
"""Options with a value that say what layers may take."""
_SAFEGUARD: Final = ("--safeguard", "--no-safeguard")
"""The same without a value."""


def command_of(result: Searched, point: FrontierPoint, frontier: Frontier) -> str:
    """What finds the answer, or a point beside or on the frontier, again; empty: nothing does."""
    is_answer, command = point.label == "result", result.made.again
    if why_no_command(result, point, frontier):
        return ""
    limit = written_limit(frontier.resource, point.cost, frontier.unit)
    uniform = _uniform_of(point)
    if uniform:
        if command:
            has_recipe = result.provenance.recipe is not None
            return command_for_uniform(command, limit, uniform, has_recipe)
        return _uniform_call(result, uniform, {frontier.resource: point.cost})
    if command:
        # The words have the other budgets already.
        return shlex.join(command) if is_answer else command_for(command, limit, "point")
    return call_of(result) if is_answer else _call_of_point(result, point, frontier)


def why_no_command(result: Searched, point: FrontierPoint, frontier: Frontier) -> str:
    """Why nothing finds a point again, for the page in the command's place; empty: a command does.

    A command of the answer is how it came about, whatever it was.
    """
    command = result.made.command
    if point.label == "result":
        return ""
    if command and command[1] not in _SEARCHING:
        return f"mpq {command[1]} worked on one saved answer, and finds no others"
    if command and not written_limit(frontier.resource, point.cost, frontier.unit):
        return f"no limit can be written in {frontier.unit}"
    uniform = _uniform_of(point)
    if not uniform:
        return ""
    if result.problem.parts is not None:
        return "bits differ inside layers here, and a search for one precision would divide none"
    if any(str(precision) != uniform for precision in point.precisions.values()):
        return f"some layers may not take {uniform}, and have what is nearest to it"
    if isnan(point.cost):
        return f"the device cannot run every layer at {uniform}"
    return ""


def call_of(result: Searched) -> str:
    """A search that was no command, as Python calls it again with the same task."""
    asked, methods = result.provenance.asked, _methods(result)
    # Rounds after the one that was dropped change nothing.
    rounds = len(result.provenance.refinements)
    if asked is None:
        # Of an older record: what was made small is a limit.
        limits = {budget.resource: budget.limit for budget in result.problem.budgets}
        return call_for(limits, methods, is_safe=True, rounds=rounds)
    # A recipe says by itself whether there is one.
    is_safe = asked.safeguard or "recipe" in methods
    return call_for(
        asked.limits, methods, is_safe, rounds, asked.objective and asked.objective.call
    )


def _call_of_point(result: Searched, point: FrontierPoint, frontier: Frontier) -> str:
    limits = {budget.resource: budget.limit for budget in result.problem.budgets}
    own = {frontier.resource: point.cost}
    return call_for({**limits, **own}, _methods(result), is_safe=False)


def _uniform_call(result: Searched, precision: str, limits: Mapping[str, float]) -> str:
    """With one candidate, and without what rules say of candidates."""
    held = result.problem.constraints
    is_ruled = held.fixed or len(set(map(frozenset, held.candidates.values()))) > 1
    rules = (
        ", rules=dataclasses.replace(task.rules, fix=(), allow=(), ends=None)" if is_ruled else ""
    )
    task = f'dataclasses.replace(task, candidates=["{precision}"]{rules})'
    return call_for(limits, _methods(result), is_safe=False, task=task)


def _uniform_of(point: FrontierPoint) -> str:
    """The precision that it is, also where that took a point's place; empty: it is none."""
    if point.label in ("result", FRONTIER):
        return ""
    return point.label.removeprefix(f"{FRONTIER} (uniform ").removesuffix(")")


def _methods(result: Searched) -> dict[str, str]:
    """What a search from Python was told beside the task; a recipe says all of it."""
    made = result.provenance
    if made.recipe is not None:
        return {"recipe": made.recipe.name}
    asked = {"sensitivity": (made.estimator, ESTIMATOR), "solver": (made.solver, SOLVER)}
    return {name: found for name, (found, default) in asked.items() if found != default}


def command_for(command: Sequence[str], limit: str, label: str) -> str:
    """The search's command with another limit.

    Without a safeguard, which may take another answer than the point.

    Args:
        command: Words of the search, whose limit of the same resource is replaced.
        limit: On what the point uses, as ``written_limit`` has it.
        label: A word for the folder, so that nothing is overwritten.
    """
    program, _, *rest = command
    words = [program, "search", *_without(rest, _OF_THE_ANSWER, limit.partition("=")[0])]
    return shlex.join(_elsewhere([*words, "--no-safeguard", "--limit", limit], label))


def command_for_uniform(
    command: Sequence[str], limit: str, precision: str, has_recipe: bool = False
) -> str:
    """The search's command with one candidate, whatever else it limits or fixes.

    Args:
        command: As of ``command_for``; its limits are left out.
        limit: As of ``command_for``: a search has to have one.
        precision: The candidate, and the word for the folder.
        has_recipe: Whether what layers may take could be a recipe's.
    """
    program, _, *rest = command
    left = _OF_THE_ANSWER | _OF_CANDIDATES | {"--limit"}
    words = [program, "search", *_without(rest, left), "--precisions", precision]
    words += ["--ends", "none", "--allow", "none"] if has_recipe else []
    return shlex.join(_elsewhere([*words, "--no-safeguard", "--limit", limit], precision))


def call_for(
    limits: Mapping[str, float | str],
    methods: Mapping[str, str],
    is_safe: bool,
    rounds: int = 0,
    objective: str | None = None,
    task: str = "task",
) -> str:
    """A search that was no command, as Python calls it again.

    Args:
        limits: Resource to the amount that a point uses, or to its limit.
        methods: Names of its other arguments to what they are, where they are not the defaults.
        is_safe: With the safeguard, which is a part of the answer and of no point.
        rounds: Of refinement; points have none.
        objective: What is made small; ``None``: the loss.
        task: The task, as an expression.
    """
    others = [f'{name}="{text}"' for name, text in methods.items()]
    others += [f"objective={objective}"] if objective else []
    others += [f"refine={rounds}"] if rounds else []
    others += [] if is_safe else ["safeguard=False"]
    return f"mpq.search({', '.join((task, _spelled(limits), *others))})"


def _spelled(limits: Mapping[str, float | str]) -> str:
    amounts = (
        f'"{name}": ' + (f'"{amount}"' if isinstance(amount, str) else repr(amount))
        for name, amount in limits.items()
    )
    return f"{{{', '.join(amounts)}}}"


def _without(command: Sequence[str], left: Collection[str], resource: str = "") -> Iterator[str]:
    """Without the safeguard, options with a value that are left, and a limit of this resource."""
    words = iter(command)
    for word in words:
        option, separator, value = word.partition("=")
        if option in _SAFEGUARD:
            continue
        if option != "--limit" and option not in left:
            yield word
            continue
        given = value if separator else next(words, "")
        if option not in left and given.partition("=")[0].strip() != resource:
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
