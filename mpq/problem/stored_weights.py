"""The file beside assignment.json: weights that were rounded with regard to data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mpq._support.json_object import quoted
from mpq.errors import FileFormatError
from mpq.quantization.precision import Precision
from mpq.quantization.stored import WEIGHTS_FILE, StoredWeights

BY_HAND: Final = (
    "The precision of a layer whose weight was rounded with regard to data cannot be changed by "
    "hand: search again"
)


def weights_of(
    stated: Mapping[str, Any] | None, read: Callable[[str], bytes] | None
) -> StoredWeights | None:
    """The weights that an assignment's JSON states.

    Args:
        stated: As ``StoredWeights.to_dict``; ``None``: it has none.
        read: Gives the content of the file that it names; ``None``: there is only the JSON.

    Raises:
        FileFormatError: If the file is missing, or another one.
    """
    if stated is None:
        return None
    if read is None:
        raise FileFormatError(
            f"its weights were rounded with regard to data ({quoted(stated['rounding'])}) and are "
            f"in {quoted(stated['file'])}: read both files, by Assignment.load"
        )
    content = read(stated["file"])
    return StoredWeights.from_content(content, stated["rounding"], stated["sha256"])


def content_beside(path: Path, name: str) -> bytes:
    """Content of the file that ``assignment.json`` names, in its own folder.

    Raises:
        FileFormatError: If it cannot be read.
    """
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"a part of it is in {name} beside it, which cannot be read ({error.strerror}): copy "
            "all files of the run"
        ) from error


def check_named(weights: StoredWeights | None, path: Path) -> None:
    """Refuses an assignment that says nothing of the weights that lie beside it.

    Args:
        weights: That it names.
        path: Of assignment.json.

    Raises:
        FileFormatError: If it names none and there are some: rounding to nearest would be another
            network than the one that was searched.
    """
    if weights is None and path.with_name(WEIGHTS_FILE).exists():
        raise FileFormatError(
            f"{WEIGHTS_FILE} lies beside it, which it does not name: copy both files of one run, "
            "or remove that of the weights"
        )


def check_weights(
    weights: StoredWeights, layers: Mapping[str, tuple[Precision, tuple[int, ...]]], mark: str
) -> None:
    """Refuses codes of no layer, or in another format than the layer is assigned.

    Args:
        weights: Of an assignment.
        layers: Layer name to its precision and the shape of its weight.
        mark: Of the formats, as the assignment states it.

    Raises:
        FileFormatError: If weights and layers contradict each other.
    """
    for name, weight in weights.by_layer.items():
        if name not in layers:
            raise FileFormatError(
                f"not a valid assignment: its weights have {quoted(name)}, which is no layer"
            )
        precision, shape = layers[name]
        why = weight.why_not(precision.weight, shape)
        if why:
            raise FileFormatError(
                f"not a valid assignment: layer {quoted(name)} is at {precision}, but its codes "
                f"{why}. {BY_HAND}"
            )
    if weights.mark_of({name: p.weight for name, (p, _) in layers.items()}) != mark:
        raise FileFormatError(
            f"not a valid assignment: codes are of other formats than layers have. {BY_HAND}"
        )
