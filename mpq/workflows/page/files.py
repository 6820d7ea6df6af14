"""What the page needs to give the assignment.json of every point that it shows."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from mpq._support.names import shortened, visible
from mpq.problem.metadata import UsedBudget
from mpq.problem.stored_formats import format_to_dict
from mpq.problem.stored_ranges import RANGE_KEYS
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import Precision, spell_activation
from mpq.quantization.tensor_format import TensorFormat
from mpq.report.frontier import FrontierPoint
from mpq.workflows.result_json import ranges_to_dict
from mpq.workflows.searched import Searched

_OF_A_POINT: Final = ("name", "precision", "weight", "activation")
"""Keys of a layer's entry that are not the same in all assignments, and its name."""


def shared_file(result: Searched, precisions: Iterable[Precision]) -> dict[str, Any]:
    """What all assignments share, and what each layer's entry is made of.

    ``answer`` has the keys that are the answer's alone: its codes, its tuned parameters, and the
    ranges that were chosen again for it (``None``: those that any point has). Ranges and entries
    are ``[L]``, and so are ``names`` where one is shown otherwise than it is called.
    """
    if result.problem.parts is not None:
        return {}
    data = json.loads(result.assignment.to_json())
    layers, own = data.pop("layers"), {}
    for key in ("weights", "tuned"):
        if key in data:
            own[key] = data.pop(key)
    del data["metadata"]
    names, known = [layer["name"] for layer in layers], ranges_to_dict(result.ranges)
    ranges = [known.get(name, {}) for name in names]
    chosen = [x.precision.activation for x in result.assignment.layers]
    return {
        "shared": data,
        "answer": {**own, "ranges": list(map(_own_range, layers, ranges, chosen))},
        "names": None if all(shortened(visible(name)) == name for name in names) else names,
        "layers": [{k: v for k, v in layer.items() if k not in _OF_A_POINT} for layer in layers],
        "formats": {
            str(precision): {
                "weight": format_to_dict(precision.weight),
                "activation": format_to_dict(precision.activation),
                "range": spell_activation(precision.activation),
            }
            for precision in precisions
        },
        "ranges": ranges,
    }


def _own_range(
    layer: Mapping[str, Any], ranges: Mapping[str, Any], activation: TensorFormat
) -> dict[str, Any] | None:
    """The answer's range of an input where it is another one than any point has."""
    own = {key: value for key, value in layer["activation"].items() if key in RANGE_KEYS}
    # Ids of an embedding are integers, which have none.
    found = None if layer["kind"] == "embedding" else ranges.get(spell_activation(activation))
    return None if own == (found or {"range": None}) else own


def why_no_file(result: Searched, precisions: Mapping[str, Precision]) -> str:
    """Why the page cannot give a point's assignment.json; empty: it can."""
    if result.problem.parts is not None:
        return "bits differ inside layers, which only a search writes"
    embeddings = {x.name for x in result.assignment.layers if x.kind == "embedding"}
    for name, precision in precisions.items():
        chosen = precision.activation
        if name in embeddings or not needs_range(chosen):
            continue
        if spell_activation(chosen) not in result.ranges.get(name, {}):
            return f"this result does not know the range of the input of {name} at {precision}"
    return ""


def file_note(result: Searched) -> str:
    """In what the file of a point that is not the answer is another network than the point."""
    made = result.provenance
    if made.rounding == "nearest":
        return ""
    return (
        "This file may lose many times what is said here: its weights are rounded to nearest, "
        f"where the search predicted and measured codes by --rounding {made.rounding}, which it "
        "kept for its answer alone. The command makes them again."
    )


def metadata_of(result: Searched, point: FrontierPoint) -> dict[str, Any]:
    """Of a point's assignment.json: predicted and, where it was, measured."""
    problem, measured = result.problem, point.measured
    columns = problem.columns_of(point.precisions)
    known: dict[str, Any] = {
        "predicted_loss": problem.loss_of(columns),
        "measured_loss": None if measured is None else measured.divergence,
        "measured_accuracy": None if measured is None else measured.accuracy,
        "measured_score": None if measured is None else measured.score,
        "num_held_out": None if measured is None else measured.num_examples,
        "solver_status": None if point.status is None else point.status.name.lower(),
    }
    # What was predicted and measured is of codes that the file does not have.
    if file_note(result):
        known = dict.fromkeys(known)
    used = (UsedBudget(b.resource, b.unit, b.limit, b.used(columns)) for b in problem.budgets)
    unknown = {"bound": None, "gap": None, "budgets": list(map(asdict, used))}
    return {**asdict(result.assignment.metadata), **known, **unknown}
