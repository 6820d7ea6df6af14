"""A calibrated range as an assignment's JSON states it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mpq.errors import InputError
from mpq.network.layer import CACHES
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.tensor_format import Granularity, TensorFormat

RANGE_KEYS: Final = ("range", "octaves", "channels", "first")
"""What a layer's input says besides its format."""


def range_to_dict(calibrated: ActivationRange | None) -> dict[str, Any]:
    """JSON-ready; ``range`` is null where there is none."""
    if calibrated is None:
        return {"range": None}
    return {
        "range": [calibrated.low, calibrated.high],
        # Of few assignments: files without them are read by earlier versions as well.
        **({"octaves": calibrated.octaves} if calibrated.octaves else {}),
        **({"channels": list(map(list, calibrated.channels))} if calibrated.channels else {}),
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
            raise InputError("parts of it have ranges, and the whole has none")
        return None
    (low, high), channels = _pair(ends), tuple(map(_pair, data.get("channels", ())))
    apart = None if first is None else _pair(first)
    return ActivationRange(low, high, data.get("octaves", 0), channels, apart)


def _pair(ends: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, ends)
    return low, high


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
    by, given = tensor_format.granularity, len(calibrated.channels)
    if calibrated.octaves and not tensor_format.number.is_twin:
        raise InputError("there are octaves, and its format has one scale")
    if given and by is not Granularity.INPUT_CHANNEL:
        raise InputError("channels have ranges, and its format has one for all")
    if by is Granularity.INPUT_CHANNEL and not given:
        raise InputError("its format has a range for every channel, and none is given")
    if given and given not in _channels(kind, weight_shape, given):
        raise InputError(f"{given} channels have ranges, and the layer has other inputs")
    if calibrated.first is not None and by is not Granularity.FIRST_APART:
        raise InputError("first positions have no range of their own in its format")


def _channels(kind: str, weight_shape: Sequence[int], given: int) -> Sequence[int]:
    """How many input channels a layer may have."""
    if kind == "linear":
        return weight_shape  # a matrix is stored either way round
    if kind in CACHES:
        num_heads, head_size, *_ = weight_shape
        return [num_heads * head_size]
    if kind.startswith("conv_transpose"):
        return weight_shape[:1]
    # Groups of a convolution read a part of the channels each.
    return [given] if given % weight_shape[1] == 0 else []
