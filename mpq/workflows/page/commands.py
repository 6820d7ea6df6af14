"""What finds a point of a frontier again: the search's own command or call, with its limits."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

_SEARCHING: Final = ("search", "frontier")
"""Commands that take the limits of a search."""


def command_for(command: Sequence[str], limits: Mapping[str, float], label: str) -> str:
    """The search's command with other limits, or a call where it was no command; or nothing.

    Args:
        command: Words of the search, whose limits of these resources are replaced; none where it
            was called from Python.
        limits: Resource to the amount that a point uses, or to its budget.
        label: A word for the folder, so that nothing is overwritten.
    """
    if not command:
        given = ", ".join(f'"{name}": {amount!r}' for name, amount in limits.items())
        return f"mpq.search(task, {{{given}}})"
    program, verb, *rest = command
    # A tuning of a saved answer has no other points.
    if verb not in _SEARCHING:
        return ""
    words = [program, "search", *_without(rest, set(limits))]
    for name, amount in limits.items():
        words += ["--limit", f"{name}={amount!r}"]
    return shlex.join(_elsewhere(words, label))


def _without(command: Sequence[str], resources: set[str]) -> list[str]:
    """Without ``--limit`` of these resources, in both spellings."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        option, separator, value = word.partition("=")
        if option != "--limit":
            kept.append(word)
            continue
        limit = value if separator else next(words, "")
        if limit.partition("=")[0].strip() not in resources:
            kept += ["--limit", limit]
    return kept


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
