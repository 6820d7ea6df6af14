"""The JSON Schema of problems and what they are made of, as mpq itself reads it."""

from functools import cache
from typing import Any, Final

_BY_NUMPY: Final = ("names", "numbers", "truth_values", "columns")
"""What may be thousands of cells: ``json_arrays`` looks at them, a hundred times as fast."""


def check(data: Any, definition: str, what: str) -> None:
    """Refuses what does not fit a definition of ``problem.schema.json``.

    Args:
        data: What JSON was read as.
        definition: Such as ``cost_table``; empty: the whole problem.
        what: What is expected, for the message.

    Raises:
        FileFormatError: With the place and the reason.
    """
    # Imported here: tables are made and solved without jsonschema.
    from mpq._support.schema import validate

    validate(data, _schema(definition), what)


@cache
def _schema(definition: str) -> Any:
    from mpq._support.schema import read_schema

    schema = read_schema("mpq.problem", "problem.schema.json")
    schema["$defs"] |= {name: {"type": "array"} for name in _BY_NUMPY}
    return {"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]} if definition else schema
