"""JSON Schemas of the files that mpq reads and writes, and checking against them."""

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jsonschema

from mpq.errors import FileFormatError


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
    errors = jsonschema.Draft202012Validator(schema).iter_errors(data)
    worst = jsonschema.exceptions.best_match(errors)
    if worst is not None:
        place = "/".join(map(str, worst.absolute_path)) or "the top level"
        raise FileFormatError(f"not a valid {what}: at {place}: {worst.message}")
