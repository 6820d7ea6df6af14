"""Which layers a user means: shell-style globs over names, and predicates over modules."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias

from mpq.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

Pattern: TypeAlias = str | Callable[[str, Any], bool]
"""A glob such as ``blocks.*.conv``, or a function of a layer's name and ``nn.Module``.

The module is ``Any``, as attributes of an ``nn.Module`` have no type that a predicate could use.
"""


def check_pattern(pattern: object, rule: str) -> None:
    """Refuses what is neither a glob nor a predicate.

    Args:
        pattern: What the user gave as a rule for layers.
        rule: Where it was given, such as ``exclude``; for the message.

    Raises:
        InputError: If it is neither.
    """
    if not isinstance(pattern, str) and not callable(pattern):
        raise InputError(
            f"{rule}: a layer is named by a glob such as 'head*' or a predicate (name, module) -> "
            f"bool; got {pattern!r}"
        )
    if not isinstance(pattern, str):
        _check_arguments(pattern, rule)


def _check_arguments(predicate: Callable[..., Any], rule: str) -> None:
    try:
        taken = signature(predicate)
    # Some functions that are written in C do not say what they take.
    except ValueError:
        return
    try:
        taken.bind("name", "module")
    except TypeError as error:
        raise InputError(
            f"{rule}: a predicate is called with a layer's name and module; {_called(predicate)!r} "
            f"takes {taken}: {error}"
        ) from error


def _called(predicate: Callable[..., Any]) -> str:
    return str(getattr(predicate, "__name__", repr(predicate)))


def matching(modules: "Mapping[str, nn.Module]", pattern: Pattern, option: str) -> tuple[str, ...]:
    """The names of the layers that a glob matches, or for which a predicate is true.

    A name matches itself, whatever characters it has, and nothing else. Where no layer matches a
    glob with brackets, they stand for themselves: ``layers[0].*``.

    Args:
        modules: Layer name to module, of all layers that there are.
        pattern: A glob, or a predicate of name and module.
        option: The command line's word for the rule, such as ``--tie``; for the message, which
            names the rule of ``mpq.Rules`` too.

    Raises:
        UnknownNameError: If there is no such layer; a rule for nothing is a misspelled one.

    >>> matching(dict.fromkeys(["layer1.conv", "layer2.conv", "fc"]), "layer*", "--tie")
    ('layer1.conv', 'layer2.conv')
    """
    what = f"layer for {option.removeprefix('--')} ({option})"
    if isinstance(pattern, str):
        found = (pattern,) if pattern in modules else _globbed(modules, pattern)
        written = pattern
    else:
        found = tuple(name for name, module in modules.items() if pattern(name, module))
        what, written = f"{what} by the predicate", _called(pattern)
    if not found:
        raise UnknownNameError(what, written, modules)
    return found


def _globbed(names: Iterable[str], glob: str) -> tuple[str, ...]:
    # A set of characters first, as everywhere. ``[[]`` is how a glob writes a single bracket.
    for tried in (glob, glob.replace("[", "[[]")):
        # fnmatch folds case on some systems, but names of modules have a case everywhere
        found = tuple(name for name in names if fnmatchcase(name, tried))
        if found:
            return found
    return ()
