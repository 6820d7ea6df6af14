"""Commands whose options are the fields of dataclasses, nested or not."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def taking(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses are groups of options.

    Every field of such a dataclass is an option of the command; a field that is a dataclass itself
    is a group again. All fields have defaults.
    """
    # Annotations may be texts, as with ``from __future__ import annotations``: types are needed.
    own = inspect.signature(command, eval_str=True).parameters
    opened = [p for name in own for p in _opened(own[name])]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**{name: _value(own[name].annotation, name, values) for name in own})

    # typer reads names, types and defaults from the signature, as if they had been written out
    run.__annotations__ = {p.name: p.annotation for p in opened}
    run.__signature__ = inspect.Signature(opened)  # type: ignore[attr-defined]
    return run


def gathered(options: type[Options], values: Mapping[str, Any]) -> Options:
    """An instance from the values of all its fields and those of its groups."""
    # Without extras, since here it only matters which fields are groups.
    hints = get_type_hints(options)
    return options(**{name: _value(hint, name, values) for name, hint in hints.items()})


def _value(kind: Any, name: str, values: Mapping[str, Any]) -> Any:
    is_group = isinstance(kind, type) and is_dataclass(kind)
    return gathered(kind, values) if is_group else values[name]


def _opened(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """The parameter, or those of its group in the order of declaration."""
    kind = parameter.annotation
    if not is_dataclass(kind):
        # By keyword only, so that options with defaults may come before those without.
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    # typer finds an option's help and flags in the extras.
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        yield from _opened(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                # Of a field that is a group itself it is never read: that is opened field by field.
                default=field.default,
                annotation=hints[field.name],
            )
        )
