"""JSON Schemas of the files that mpq reads and writes, and checking against them."""

from typing import Any

import jsonschema

from mpq.errors import FileFormatError


def validate(data: Any, schema: Any, what: str) -> None:
    """Checks data against a schema.

    Raises:
        FileFormatError: With the place and the reason of the most telling mismatch.
    """
    errors = jsonschema.Draft202012Validator(schema).iter_errors(data)
    worst = jsonschema.exceptions.best_match(errors)
    if worst is not None:
        place = "/".join(map(str, worst.absolute_path)) or "the top level"
        raise FileFormatError(f"not a valid {what}: at {place}: {worst.message}")
