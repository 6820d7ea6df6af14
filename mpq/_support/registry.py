"""Parts by name: what ``--sensitivity``, ``--solver`` and ``--precisions`` take."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeVar,
    cast,
    final,
    get_type_hints,
)

from mpq._support.bounds import check_float, check_whole
from mpq._support.json_object import quoted
from mpq.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Named(Protocol):
    """A class with a name and a sentence about it."""

    name: ClassVar[str]
    summary: ClassVar[str]


class NamedValue(Protocol):
    """A value that says what it is called."""

    @property
    def name(self) -> str:
        """The name that it is looked up by."""


Part = TypeVar("Part", bound=Named)
Value = TypeVar("Value", bound=NamedValue)


@final
class PlugIns:
    """What other packages add to one kind of part, by the entry points of a group.

    Args:
        kind: Such as ``solver``, for messages.
        group: Group of the entry points, such as ``mpq.solvers``.
        taken: Names of mpq's own parts, which others may not use.
    """

    def __init__(self, kind: str, group: str, taken: Collection[str]) -> None:
        self.kind = kind
        self.group = group
        self._taken = taken

    @cached_property
    def points(self) -> dict[str, "EntryPoint"]:
        """Entry points by name, found without importing what they name.

        Raises:
            InputError: If another package uses a name of mpq's.
        """
        # Looked for once per process: reading every installed package's metadata takes 10 ms.
        from importlib.metadata import entry_points  # not for `mpq --help`

        found = {point.name: point for point in entry_points(group=self.group)}
        taken = sorted(found.keys() & set(self._taken))
        if taken:
            raise InputError(
                f"the package {_package(found[taken[0]])} adds a {self.kind} {taken[0]!r}, but mpq "
                "has one of that name; it must be renamed or uninstalled"
            )
        return found

    def load(self, name: str) -> Any:
        """What the entry point names; the module that it is in is imported now.

        Raises:
            InputError: If it cannot be imported.
        """
        point = self.points[name]
        try:
            return point.load()
        except Exception as error:  # the module runs, and it is another package's
            raise InputError(
                f"the {self.kind} {name!r} of the package {_package(point)} cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall that package"
            ) from error


@final
class Registry(Generic[Part]):
    """The classes of one kind of part, each a dataclass whose fields are its options.

    Parts of other packages are found by their entry points, and imported when they are first
    asked for.

    Args:
        kind: Such as ``solver``, for messages.
        parts: The classes that come with mpq.
        group: Group of the entry points by which other packages add parts, such as ``mpq.solvers``.
    """

    def __init__(self, kind: str, parts: tuple[type[Part], ...], group: str) -> None:
        self.kind = kind
        self.group = group
        self._own = {str(part.name): part for part in parts}
        _check_doubles(kind, [str(part.name) for part in parts])
        self._plugins = PlugIns(kind, group, self._own)

    def __iter__(self) -> Iterator[type[Part]]:
        return map(self.get, self.names())

    def names(self) -> tuple[str, ...]:
        """Names, in the order of registration; those of other packages last.

        Raises:
            InputError: If another package uses a name of mpq's.
        """
        return (*self._own, *self._plugins.points)

    def get(self, name: str) -> type[Part]:
        """The class of that name.

        Raises:
            UnknownNameError: If there is none.
            InputError: If it is another package's and cannot be used.
        """
        if name in self._own:
            return self._own[name]
        if name not in self._plugins.points:
            raise UnknownNameError(self.kind, name, self.names())
        part = self._plugins.load(name)
        # Only here: mpq's own parts are checked by mypy and by the contract tests.
        _check_part(part, self._plugins.points[name], self.kind)
        return cast(type[Part], part)

    def build(self, text: str, seed: int | None = None) -> Part:
        """An instance from ``name`` or ``name:option=value,option=value``.

        Args:
            text: Name and options as a user writes them, such as ``hessian-trace:num_probes=8``.
            seed: Given to a part that has a ``seed`` option which the text does not set.

        Raises:
            UnknownNameError: If the name or an option does not exist.
            InputError: If a value does not fit its option.
        """
        name, _, written = text.partition(":")
        part = self.get(name.strip())
        options = self.options(part)
        # Before the written options, so that a seed in the text wins.
        values: dict[str, Any] = {} if seed is None or "seed" not in options else {"seed": seed}
        # Empty items are skipped: neither `name:` nor a comma at the end does harm.
        for item in filter(None, (item.strip() for item in written.split(","))):
            option, _, value = (word.strip() for word in item.partition("="))
            if option not in options:
                raise UnknownNameError(f"option of {name}", option, options)
            # Of many a default is an empty text, which would be taken without a word.
            if not value:
                raise InputError(f"{name}:{option} has no value: give one, or leave it out")
            values[option] = _convert(f"{name}:{option}", value, options[option])
        return part(**values)

    def spell(self, part: Part) -> str:
        """The text that ``build`` makes a part from: its name, and options that are not default.

        Options that no text can say (assignments to begin at, functions) are left out, and of a
        part that is no dataclass, which only Python can make, there is nothing but the name.
        """
        if not dataclasses.is_dataclass(part):
            return part.name
        default = self.options(type(part))
        values = {option: getattr(part, option) for option in default}
        written = [f"{o}={_text(v)}" for o, v in values.items() if v != default[o]]
        return part.name + (f":{','.join(written)}" if written else "")

    def options(self, part: type[Part]) -> dict[str, Any]:
        """Option names and defaults that can be written as text."""
        assert dataclasses.is_dataclass(part)
        fields = dataclasses.fields(part)
        simple = (bool, int, float, str)
        # Not `field.type`, which is a string where a module postpones its annotations. A default of
        # `None` does not tell the type of what is written; `float | None` is the one that is read.
        types = get_type_hints(part)
        return {
            f.name: f.default
            for f in fields
            if isinstance(f.default, simple) or types[f.name] == float | None
        }


@final
class ValueRegistry(Mapping[str, Value], Generic[Value]):
    """The values of one class by name: mpq's own, then those of other packages.

    Names are known without importing a package; its value is loaded when it is first asked for.

    Args:
        kind: Such as ``number format``, for messages.
        own: The values that come with mpq.
        group: Group of the entry points by which other packages add values, such as
            ``mpq.formats``.
        reserved: Further names that other packages may not use.
    """

    def __init__(
        self, kind: str, own: tuple[Value, ...], group: str, reserved: Iterable[str] = ()
    ) -> None:
        self.kind = kind
        self.group = group
        self.own = own
        self._values = {value.name: value for value in own}
        _check_doubles(kind, [value.name for value in own])
        self._plugins = PlugIns(kind, group, (*self._values, *reserved))

    def __iter__(self) -> Iterator[str]:
        return iter((*(value.name for value in self.own), *self._plugins.points))

    def __len__(self) -> int:
        return len(self.own) + len(self._plugins.points)

    def __getitem__(self, name: str) -> Value:
        """The value of that name; ``KeyError`` where nobody has it.

        Raises:
            InputError: If it is another package's and cannot be used.
        """
        if name not in self._values:
            # The `KeyError` of an unknown name is what `Mapping.get` and `in` rely on.
            point = self._plugins.points[name]
            value = self._plugins.load(name)
            _check_value(value, point, self.kind, type(self.own[0]))
            self._values[name] = value
        return self._values[name]


def _check_doubles(kind: str, names: Sequence[str]) -> None:
    """Of two parts of one name the first would be forgotten without a word."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{kind} {name!r} is registered {count} times: leave one")


def _check_part(part: Any, point: "EntryPoint", kind: str) -> None:
    """Refuses what lacks what every kind of part has in common."""
    if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
        raise InputError(f"{point.value} is no dataclass; a {kind} is one, with options as fields")
    if getattr(part, "name", None) != point.name or not getattr(part, "summary", None):
        raise InputError(
            f"{point.value} needs a class variable name = {point.name!r}, as its entry point is "
            "called, and a summary"
        )


def _check_value(value: Any, point: "EntryPoint", kind: str, expected: type[NamedValue]) -> None:
    """Refuses what is of another class, or called otherwise than its entry point."""
    if not isinstance(value, expected):
        raise InputError(
            f"{point.value} is of type {type(value).__name__}; a {kind} is a {expected.__name__}"
        )
    if value.name != point.name:
        raise InputError(
            f"{point.value} is called {value.name!r} and its entry point {point.name!r}; a {kind} "
            "has one name"
        )


def _package(point: "EntryPoint") -> str:
    # An entry point that was made by hand belongs to no distribution.
    return point.dist.name if point.dist is not None else point.module


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _convert(option: str, text: str, default: Any) -> Any:
    # Before the general case: `bool("false")` is true.
    if isinstance(default, bool):
        known = {"true": True, "false": False}
        if text.lower() in known:
            return known[text.lower()]
        raise InputError(f"{option} is true or false; got {quoted(text)}")
    kind = float if default is None else type(default)
    try:
        value = kind(text)
    except ValueError:
        raise InputError(
            f"{option} takes a value of type {kind.__name__}; got {quoted(text)}"
        ) from None
    if isinstance(value, int):
        return check_whole(option.partition(":")[2], value, shown=option)
    return check_float(value, option) if isinstance(value, float) else value
