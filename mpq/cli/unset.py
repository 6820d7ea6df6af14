"""Words for what a recipe sets and the user wants as it is without one."""

from typing import Final

NONE: Final = "none"
"""Taken by options whose setting is nothing by default."""
DEFAULT: Final = "default"
"""Taken by options whose setting is a list of mpq's by default."""


def unless_none(written: str | None) -> str | None:
    """As written; ``none`` is nothing."""
    return None if written == NONE else written


def several(option: str, items: list[str] | None) -> list[str]:
    """What an option was given each time; ``none`` is nothing.

    Args:
        option: Its name, for the message.
        items: What was written each time; ``None``: it was not given.

    Raises:
        InputError: If there is ``none`` and something else.
    """
    if items is None or items == [NONE]:
        return []
    if NONE in items:
        from mpq.errors import InputError

        raise InputError(
            f"{option} {NONE} says that there are none: give it alone, or leave it out (a layer "
            "that is called so is [n]one)"
        )
    return items
