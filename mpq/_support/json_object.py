"""JSON of a file: the one door that all of it comes in by, or a sentence that says why not."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, Final, TypeVar

from mpq._support.names import shortened, visible
from mpq.errors import FileFormatError, InputError

Value = TypeVar("Value")

LARGEST_BYTES: Final = 256 * 2**20
"""A file beyond this is refused before it is read; a problem of 1000 layers is below 1 MiB."""
_LONGEST_QUOTED_LIST: Final = 8
_KINDS: Final = {
    dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null",
    int: "a number", float: "a number",
}  # fmt: skip


def read_text(path: Path | str, largest: int = LARGEST_BYTES) -> str:
    """A text file in UTF-8, as whole as it is.

    Raises:
        FileFormatError: If it cannot be read, is no regular file, or is larger than so many bytes.
    """
    path = Path(path)
    try:
        # A pipe would be waited for, and /dev/zero read without end.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise FileFormatError(f"cannot read {path}: it is no regular file")
        if path.is_file() and path.stat().st_size > largest:
            raise FileFormatError(
                f"cannot read {path}: it has {path.stat().st_size / 2**20:.0f} MiB; files of up to "
                f"{largest / 2**20:.0f} MiB are read"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"cannot read {path}: it is no text in UTF-8") from error
    # A path with a zero byte is a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"cannot read {path}: {reason}") from error


def read_as(path: Path, parse: Callable[[str], Value]) -> Value:
    """What a function makes of a text file.

    Raises:
        FileFormatError: If it cannot be read, or the function refuses it: with the file's name.
    """
    text = read_text(path)
    try:
        return parse(text)
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from error


def known(data: Any) -> Any:
    """JSON-ready: numbers that are not finite, which JSON does not have, are null.

    >>> known({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): known(value) for key, value in data.items()}
    return [known(value) for value in data] if isinstance(data, list | tuple) else data


def number_or_nan(value: float | None) -> float:
    """From ``known``: null is a number that is not known."""
    return nan if value is None else float(value)


def measured_loss(value: float | None) -> float:
    """From ``known``: of losses null is infinite, as where a probability is 0."""
    return inf if value is None else float(value)


def by_line(data: Mapping[str, Any]) -> str:
    """An object as JSON, a line for every key: json indents ten times as slowly as it writes."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def parsed_json(text: str, prefix: str = "", hint: str = "") -> Any:
    """What a text is as JSON: any value.

    Args:
        text: What was read.
        prefix: Begins the message: ``not a problem: ``.
        hint: Ends it: what to do.

    Raises:
        FileFormatError: If it is no JSON, an object has a key twice, brackets are nested too
            deeply, or a number has thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except _DoubleKeyError as error:
        raise FileFormatError(
            f"{prefix}the key {quoted(error.args[0])} is there twice in one object{hint}"
        ) from None
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{prefix}not JSON: {error}{hint}") from error
    except ValueError as error:  # Python's limit, which keeps whoever reads from waiting for hours
        raise FileFormatError(f"{prefix}a whole number has too many digits{hint}") from error
    except RecursionError as error:
        raise FileFormatError(f"{prefix}brackets are nested too deeply{hint}") from error


class _DoubleKeyError(Exception):
    """Of a key that is in one object twice: which value was meant nobody can tell."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DoubleKeyError(key)
            seen.add(key)
    return found


def json_object(text: str, what: str, hint: str = "") -> dict[str, Any]:
    """The object that a text is, which says its schema version.

    Args:
        text: What was read.
        what: What is expected, such as ``problem``; for the message.
        hint: What to do where it is something else.

    Raises:
        FileFormatError: If the text is no JSON, no object, or has no ``schema_version``.
    """
    data = parsed_json(text, f"not a {what}: ", hint)
    require_keys(data, what, ("schema_version",), hint)
    found: dict[str, Any] = data
    return found


def require_keys(data: Any, what: str, keys: Sequence[str], hint: str = "") -> None:
    """Refuses what is no object with these keys.

    Args:
        data: What JSON was read as.
        what: What is expected, such as ``cost table``; for the message.
        keys: The keys that must be there.
        hint: What to do where they are not.

    Raises:
        FileFormatError: With the keys that are expected, and those that lack.
    """
    expected = f"not a {what}: expected a JSON object with the keys {', '.join(keys)}"
    if not isinstance(data, dict):
        raise FileFormatError(f"{expected}; got {kind_of(data)}{hint}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise FileFormatError(f"{expected}; it has no {', '.join(missing)}{hint}")


def require_version(data: Any, what: str, version: int, oldest: int | None = None) -> None:
    """Refuses a file of another schema version; the message says which there are.

    Args:
        data: An object that has the key ``schema_version``.
        what: What is expected, such as ``cost table``; for the message.
        version: The version of today.
        oldest: The first that is read; default: ``version``.

    Raises:
        FileFormatError: If the version is not one of these whole numbers.
    """
    found, first = data["schema_version"], version if oldest is None else oldest
    # By type: `true` is the number 1 to Python.
    if type(found) is int and first <= found <= version:
        return
    reads = f"version {version}" if first == version else f"versions {first} to {version}"
    is_older = type(found) is int and found < first
    advice = "make it again with this mpq" if is_older else "update mpq"
    raise FileFormatError(
        f"{what} of schema version {quoted(found)}; this mpq reads {reads}: {advice}"
    )


def kind_of(value: Any) -> str:
    """What a value of JSON is called: ``a list``."""
    return _KINDS.get(type(value), "something else")


def quoted(value: Any) -> str:
    """A value of JSON for a message: in the file's spelling, and short.

    >>> quoted(None), quoted("int9"), quoted([1, 2])
    ('null', "'int9'", '[1, 2]')
    """
    if isinstance(value, str):
        return f"'{shortened(visible(value))}'"
    if isinstance(value, list) and len(value) <= _LONGEST_QUOTED_LIST:
        # One level, since a value may be nested a thousand times.
        parts = (kind_of(x) if isinstance(x, dict | list) else quoted(x) for x in value)
        return f"[{shortened(', '.join(parts))}]"
    if isinstance(value, dict | list):
        return f"{kind_of(value)} of {len(value)}" if value else "{}"
    try:
        return shortened(json.dumps(value))
    except ValueError:  # a number of thousands of digits, which a file may not hold
        return kind_of(value)
