"""JSON of a file: an object with the keys that its reader needs, or a sentence that says so."""

import json
from collections.abc import Sequence
from typing import Any

from mpq.errors import FileFormatError


def json_object(text: str, what: str, hint: str = "") -> dict[str, Any]:
    """The object that a text is, which says its schema version.

    Args:
        text: What was read.
        what: What is expected, such as ``problem``; for the message.
        hint: What to do where it is something else.

    Raises:
        FileFormatError: If the text is no JSON, no object, or has no ``schema_version``.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"not a {what}: not JSON: {error}{hint}") from error
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
        raise FileFormatError(f"{expected}; got {_KINDS.get(type(data), 'something else')}{hint}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise FileFormatError(f"{expected}; it has no {', '.join(missing)}{hint}")


_KINDS = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"} | dict.fromkeys(
    (int, float), "a number"
)
