"""Assignments in the forms that other tools read."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

from torch import nn

from mpq._support.names import for_csv, for_markdown
from mpq.backends._base import HELD, Backend, Exported
from mpq.errors import PrecisionError, UnknownNameError
from mpq.problem.assignment import Assignment


@final
@dataclass(frozen=True)
class Text(Backend):
    """The assignment alone, without weights.

    Args:
        style: ``bits`` (flat JSON), ``json`` (everything), ``csv`` or ``markdown``.

    Raises:
        UnknownNameError: If there is no such style.
    """

    name: ClassVar[str] = "text"
    summary: ClassVar[str] = "a bit width per layer: style=bits (flat JSON), json, csv, markdown"

    needs_network: ClassVar[bool] = False
    caches: ClassVar[str] = HELD
    operands: ClassVar[str] = HELD

    style: str = "bits"

    def __post_init__(self) -> None:
        # On construction, so that a misspelled style is refused before there is anything to write.
        if self.style not in STYLES:
            raise UnknownNameError("style of text", self.style, STYLES)

    def export(
        self,
        assignment: Assignment,
        model: nn.Module | None,  # noqa: ARG002
        calibration: Any,  # noqa: ARG002
    ) -> Exported:
        """See ``Backend.export``; needs neither network nor data."""
        return Exported(STYLES[self.style](assignment).encode())


def _bits(assignment: Assignment) -> str:
    """Layer name to weight and activation bits, and nothing else.

    Raises:
        PrecisionError: If a weight has a branch, which is in no bits.
    """
    for layer in assignment.layers:
        if layer.precision.weight.branch is not None:
            raise PrecisionError(
                f"bits do not tell that layer {layer.name!r} at {layer.precision} has a branch "
                "beside its codes: take style=json, csv or markdown"
            )
    layers = {
        layer.name: {
            "weight_bits": layer.precision.weight.mean_bits,
            "activation_bits": layer.precision.activation.mean_bits,
        }
        for layer in assignment.layers
    }
    # Indented, as people compare such files, and `diff` goes by lines.
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
        both = (layer.precision.weight, layer.precision.activation)
        formats = [text for f in both for text in (f.number.name, f"{f.mean_bits:g}")]
        rows.append((layer.name, layer.kind, str(layer.precision), *formats))
    return rows


def _csv(assignment: Assignment) -> str:
    # Names of modules may hold commas and quotation marks.
    file = io.StringIO()
    rows = ([for_csv(cell) for cell in row] for row in _rows(assignment))
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _markdown(assignment: Assignment) -> str:
    heading, *rows = _rows(assignment)
    # Markdown has no table without this line below the heading.
    lines = [heading, ("---",) * len(heading), *(map(for_markdown, row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


STYLES: Final[dict[str, Callable[[Assignment], str]]] = {
    "bits": _bits,
    "json": Assignment.to_json,
    "csv": _csv,
    "markdown": _markdown,
}
"""Name to writer."""
