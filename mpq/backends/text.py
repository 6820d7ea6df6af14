"""Assignments in the forms that other tools read."""

import json
from collections.abc import Callable
from typing import Final

from mpq.errors import UnknownNameError
from mpq.problem.assignment import Assignment


def export(assignment: Assignment, style: str) -> str:
    """An assignment as text.

    Args:
        assignment: What to write.
        style: A name of ``STYLES``.

    Raises:
        UnknownNameError: If there is no such style.
    """
    if style not in STYLES:
        raise UnknownNameError("export format", style, STYLES)
    return STYLES[style](assignment)


def _bits(assignment: Assignment) -> str:
    """Layer name to weight and activation bits, and nothing else."""
    layers = {
        layer.name: {
            "weight_bits": layer.precision.weight.number.bits,
            "activation_bits": layer.precision.activation.number.bits,
        }
        for layer in assignment.layers
    }
    return json.dumps(layers, indent=1) + "\n"


def _rows(assignment: Assignment) -> list[tuple[str, ...]]:
    heading = (
        "layer",
        "kind",
        "precision",
        "weight",
        "weight_bits",
        "activation",
        "activation_bits",
    )
    rows: list[tuple[str, ...]] = [heading]
    for layer in assignment.layers:
        weight, activation = layer.precision.weight.number, layer.precision.activation.number
        formats = (weight.name, str(weight.bits), activation.name, str(activation.bits))
        rows.append((layer.name, layer.kind, str(layer.precision), *formats))
    return rows


def _csv(assignment: Assignment) -> str:
    return "".join(",".join(row) + "\n" for row in _rows(assignment))


def _markdown(assignment: Assignment) -> str:
    heading, *rows = _rows(assignment)
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


STYLES: Final[dict[str, Callable[[Assignment], str]]] = {
    "bits": _bits,
    "json": Assignment.to_json,
    "csv": _csv,
    "markdown": _markdown,
}
"""Name to writer."""
