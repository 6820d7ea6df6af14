"""Parts by name, with options: what ``--sensitivity`` and ``--solver`` take."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

from mpq.errors import InputError, UnknownNameError


class Named(Protocol):
    """A class with a name and a sentence about it."""

    name: ClassVar[str]
    summary: ClassVar[str]


Part = TypeVar("Part", bound=Named)


@final
class Registry(Generic[Part]):
    """The classes of one kind of part, each a dataclass whose fields are its options.

    Args:
        kind: Such as ``solver``, for messages.
        parts: The classes.
    """

    def __init__(self, kind: str, parts: tuple[type[Part], ...]) -> None:
        self.kind = kind
        self._parts = {str(part.name): part for part in parts}

    def __iter__(self) -> Iterator[type[Part]]:
        return iter(self._parts.values())

    def names(self) -> tuple[str, ...]:
        """Names, in the order of registration."""
        return tuple(self._parts)

    def get(self, name: str) -> type[Part]:
        """The class of that name.

        Raises:
            UnknownNameError: If there is none.
        """
        if name not in self._parts:
            raise UnknownNameError(self.kind, name, self._parts)
        return self._parts[name]

    def build(self, text: str, seed: int | None = None) -> Part:
        """An instance from ``name`` or ``name:option=value,option=value``.

        Args:
            text: Name and options.
            seed: Given to a part that has a ``seed`` option which the text does not set.

        Raises:
            UnknownNameError: If the name or an option does not exist.
            InputError: If a value does not fit its option.
        """
        name, _, written = text.partition(":")
        part = self.get(name.strip())
        options = self.options(part)
        values: dict[str, Any] = {} if seed is None or "seed" not in options else {"seed": seed}
        for item in filter(None, (item.strip() for item in written.split(","))):
            option, _, value = (word.strip() for word in item.partition("="))
            if option not in options:
                raise UnknownNameError(f"option of {name}", option, options)
            values[option] = _convert(f"{name}:{option}", value, options[option])
        return part(**values)

    def options(self, part: type[Part]) -> dict[str, Any]:
        """Option names and defaults that can be written as text."""
        assert dataclasses.is_dataclass(part)
        fields = dataclasses.fields(part)
        simple = (bool, int, float, str)
        return {
            f.name: f.default
            for f in fields
            if isinstance(f.default, simple) or "float | None" in str(f.type)
        }


def _convert(option: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise InputError(f"{option} is true or false; got {text!r}")
    kind = float if default is None else type(default)
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{option} takes a value of type {kind.__name__}; got {text!r}") from None
