"""A calibrated range as an assignment's JSON states it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mpq.errors import InputError
from mpq.quantization.precision import Granularity, TensorFormat
from mpq.quantization.range_method import ActivationRange

RANGE_KEYS: Final = ("range", "octaves", "first")
"""What a layer's input says besides its format."""


def range_to_dict(calibrated: ActivationRange | None) -> dict[str, Any]:
    """JSON-ready; ``range`` is null where there is none."""
    if calibrated is None:
        return {"range": None}
    return {
        "range": [calibrated.low, calibrated.high],
        # Of few assignments: files without them are read by earlier versions as well.
        **({"octaves": list(calibrated.octaves)} if calibrated.octaves else {}),
        **({} if calibrated.first is None else {"first": list(calibrated.first)}),
    }


def range_from_dict(data: Mapping[str, Any]) -> ActivationRange | None:
    """Inverse of ``range_to_dict``, of an object that fits the schema.

    Raises:
        InputError: If it is no range.
        OverflowError: If a whole number is too large for a float.
    """
    ends, first = data["range"], data.get("first")
    if ends is None:
        if len(data) > 1:
            raise InputError("there are octaves, or a range of first positions, and no range")
        return None
    low, high = map(float, ends)
    apart = None if first is None else (float(first[0]), float(first[1]))
    return ActivationRange(low, high, tuple(data.get("octaves", ())), apart)


def check_range(
    calibrated: ActivationRange | None,
    tensor_format: TensorFormat,
    kind: str,
    weight_shape: Sequence[int],
) -> None:
    """Refuses a range that says what its format has no place for.

    Raises:
        InputError: Says what.
    """
    if calibrated is None:
        return
    is_twin, by = tensor_format.number.is_twin, tensor_format.granularity
    is_by_channel = by is Granularity.INPUT_CHANNEL
    expected = "none"
    if is_twin:
        expected = "one"
    elif is_by_channel:
        expected = "one for each input channel"
    given = len(calibrated.octaves)
    allowed = (0, 1) if is_twin else (0,)
    if is_by_channel:
        allowed = (0, *_channels(kind, weight_shape, given))
    if given not in allowed:
        raise InputError(f"{given} octaves, where its format has {expected}")
    if calibrated.first is not None and by is not Granularity.FIRST_APART:
        raise InputError("first positions have no range of their own in its format")


def _channels(kind: str, weight_shape: Sequence[int], given: int) -> Sequence[int]:
    """How many input channels a layer may have."""
    if kind == "linear":
        return weight_shape  # a matrix is stored either way round
    if kind.startswith("conv_transpose"):
        return weight_shape[:1]
    # Groups of a convolution read a part of the channels each.
    return [given] if given % weight_shape[1] == 0 else []
