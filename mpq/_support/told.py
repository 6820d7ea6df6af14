"""All that an object of anybody's class is: its numbers and its code, as a checksum."""

import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any, Final, final
from uuid import uuid4

KNOWN: Final = ("torch", "numpy", "builtins", "collections", "functools", "abc", "typing", "enum")
"""Packages whose versions say what their code is; or that do not change with us."""


def told(value: object, of_tensor: Callable[[Any], str]) -> str:
    """SHA-256 of an object's state and of the code of its classes, whatever its ``repr`` shows.

    A ``repr`` leaves out most of a long tensor, and what its class does not tell. What cannot be
    read, such as an open file or a generator of random numbers, is something else every time.

    Args:
        value: Any object.
        of_tensor: Checksum of a tensor.
    """
    content = BytesIO()
    try:
        _Teller(content, of_tensor).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
        return uuid4().hex
    return hashlib.sha256(content.getvalue()).hexdigest()


def code_told(kind: type) -> str:
    """SHA-256 of the code of a class and of those that it is made of: file, and what it calls.

    The file alone would not do: what is typed into a shell or a notebook has none.
    """
    found = hashlib.sha256()
    for part in kind.__mro__:
        if not is_known(part):
            found.update("\n".join([_file(part), *_of(part, set())]).encode())
    return found.hexdigest()


def is_known(kind: Any) -> bool:
    """Whether a class or a function is of mpq, whose code is in the key anyway, or of ``KNOWN``."""
    package = str(getattr(kind, "__module__", "")).partition(".")[0]
    return package in (*KNOWN, "mpq")


@final
class _Teller(pickle.Pickler):
    """A pickle that nobody reads: tensors by their checksums, classes and functions by code."""

    def __init__(self, file: BytesIO, of_tensor: Callable[[Any], str]) -> None:
        super().__init__(file, protocol=4)
        self._of_tensor = of_tensor

    def reducer_override(self, obj: Any) -> Any:
        import torch

        if isinstance(obj, torch.Tensor):
            return str, (self._of_tensor([obj]),)
        if isinstance(obj, type) and not is_known(obj):
            return str, (f"{obj.__qualname__} {code_told(obj)}",)
        if isinstance(obj, FunctionType) and not is_known(obj):
            text = "\n".join([_file(obj), *_of(obj, set())])
            return tuple, ((text, obj.__defaults__, obj.__kwdefaults__, _closed_over(obj)),)
        if is_dataclass(obj) and not isinstance(obj, type) and hasattr(obj, "__dict__"):
            # Without what was computed from the rest, which may or may not be there yet.
            state = {k: x for k, x in vars(obj).items() if not _is_cached(type(obj), k)}
            return tuple, ((type(obj), *sorted(state.items())),)
        return NotImplemented


def _closed_over(function: FunctionType) -> list[Any]:
    """What a function was made with; one that is not there yet is no value."""
    cells = function.__closure__ or ()
    return [cell.cell_contents for cell in cells if _has_contents(cell)]


def _has_contents(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_cached(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), cached_property)


def _file(part: Any) -> str:
    try:
        file = inspect.getsourcefile(part)
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (TypeError, OSError):  # a shell's or a notebook's
        return ""


def _of(part: Any, seen: set[int]) -> Iterator[str]:
    """The code of a class or a function, and of what it calls of the same module."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, type):
        for name, member in sorted(vars(part).items()):
            yield name
            for function in _functions(member):
                yield from _of(function, seen)
    elif isinstance(part, FunctionType):
        yield _text(part.__code__)
        yield repr(part.__defaults__)
        for name in part.__code__.co_names:
            used = part.__globals__.get(name)
            if getattr(used, "__module__", None) == part.__module__ and not is_known(used):
                yield from _of(used, seen)


def _functions(member: Any) -> list[Any]:
    if isinstance(member, classmethod | staticmethod):
        return [member.__func__]
    if isinstance(member, property):
        return [member.fget, member.fset]
    return [member.func] if isinstance(member, cached_property) else [member]


def _text(code: CodeType) -> str:
    return f"{code.co_code!r} {code.co_names} {[_constant(x) for x in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _text(value)
    # The order of a set is another one in every process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
