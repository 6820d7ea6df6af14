"""Whether codes that were kept are those of an assignment's layers."""

from collections.abc import Mapping
from typing import Final

from mpq._support.json_object import quoted
from mpq._support.pages import release_arrays
from mpq.errors import FileFormatError
from mpq.quantization.precision import Precision
from mpq.quantization.stored import StoredWeights

BY_HAND: Final = (
    "The precision of a layer whose weight was rounded with regard to data cannot be changed by "
    "hand: search again"
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
        release_arrays(weight.parts().values())
        if why:
            raise FileFormatError(
                f"not a valid assignment: layer {quoted(name)} is at {precision}, but its codes "
                f"{why}. {BY_HAND}"
            )
    if weights.mark_of({name: p.weight for name, (p, _) in layers.items()}) != mark:
        raise FileFormatError(
            f"not a valid assignment: codes are of other formats than layers have. {BY_HAND}"
        )
