"""JSON Schemas of the files that mpq reads and writes, and checking against them."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import resources
from itertools import islice
from typing import Any, Final

import jsonschema

from mpq._support.json_object import quoted
from mpq._support.names import LONGEST, shortened, visible
from mpq.errors import FileFormatError

_ENOUGH: Final = 100
"""Mismatches among which the most telling is looked for: a long list may have one per member."""


def read_schema(package: str, file: str, **names: Iterable[str]) -> Any:
    """A schema that lies in a package, with what it leaves to lists of names filled in.

    Args:
        package: Dotted name of the package that the file lies in, such as ``mpq.problem``.
        file: Name of the schema's file.
        names: What a string of the definition (``$defs``) that is called so may be. A list that
            other packages add to cannot stand in a file.
    """
    # By `importlib.resources`: a package that is imported from a zip file has no paths.
    schema = json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
    for definition, known in names.items():
        if definition in schema.get("$defs", {}):
            schema["$defs"][definition] = {"enum": list(known)}
    return schema


def validate(data: Any, schema: Any, what: str) -> None:
    """Checks data against a schema.

    Raises:
        FileFormatError: With the place and the reason of the most telling mismatch.
    """
    try:
        errors = islice(jsonschema.Draft202012Validator(schema).iter_errors(data), _ENOUGH)
        worst = jsonschema.exceptions.best_match(errors)
    # jsonschema spells whole values in its messages, however deeply they are nested.
    except RecursionError as error:
        raise FileFormatError(f"not a valid {what}: brackets are nested too deeply") from error
    if worst is not None:
        steps = (shortened(visible(str(step))) for step in worst.absolute_path)
        place = "/".join(steps) or "the top level"
        raise FileFormatError(f"not a valid {what}: at {place}: {_reason(worst)}")


def _reason(error: jsonschema.ValidationError) -> str:
    """jsonschema's sentence, with values as the file spells them and cut."""
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        found: Any = error.instance
        return _unknown_key(found, error.schema.get("properties", {}))
    return shortened(
        error.message.replace(repr(error.instance), quoted(error.instance)), 4 * LONGEST
    )


def _unknown_key(found: dict[str, Any], known: Iterable[str]) -> str:
    unknown = next(key for key in found if key not in known)
    near = get_close_matches(unknown[:LONGEST], known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    return f"unknown key {quoted(unknown)} ({hint})"
