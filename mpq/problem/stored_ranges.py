"""A calibrated range as an assignment's JSON states it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mpq._support.json_object import quoted
from mpq.errors import FileFormatError, InputError
from mpq.network.layer import CACHES
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.steps import StepClusters
from mpq.quantization.tensor_format import Granularity, TensorFormat

RANGE_KEYS: Final = ("range", "octaves", "channels", "first", "steps")
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
        **({"steps": list(map(range_to_dict, calibrated.steps))} if calibrated.steps else {}),
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
    steps = tuple(found for found in map(range_from_dict, data.get("steps", ())) if found)
    return ActivationRange(low, high, data.get("octaves", 0), channels, apart, steps)


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
    for each in calibrated.steps:
        check_range(each, tensor_format, kind, weight_shape)


def widen_ranges(data: Any) -> None:
    """Ranges with 0 in them, as grids always took them and as files say since version 3.

    Args:
        data: A whole assignment of an earlier version, not yet checked; changed in place.
    """
    layers = data.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        activation: Any = layer.get("activation") if isinstance(layer, dict) else None
        ends = activation.get("range") if isinstance(activation, dict) else None
        # Whatever is no such range is left to the schema, and the wrong order to the layer.
        if (
            isinstance(ends, list)
            and [type(end) in (int, float) for end in ends] == [True, True]
            and ends[0] <= ends[1]
        ):
            activation["range"] = [min(ends[0], 0), max(ends[1], 0)]


def steps_to_dict(clusters: StepClusters) -> dict[str, Any]:
    """JSON-ready."""
    return {"argument": clusters.argument, "borders": list(clusters.borders)}


def steps_from_dict(data: Mapping[str, Any] | None) -> StepClusters | None:
    """Inverse of ``steps_to_dict``, of an object that fits the schema.

    Raises:
        FileFormatError: If these are no clusters.
    """
    if data is None:
        return None
    try:
        return StepClusters(data["argument"], tuple(map(float, data["borders"])))
    # A whole number may be too large for a float.
    except (InputError, OverflowError) as error:
        raise FileFormatError(f"not a valid assignment: at steps: {error}") from error


def check_steps(
    clusters: StepClusters | None,
    reads: Iterable[tuple[str, TensorFormat, ActivationRange | None]],
) -> None:
    """Refuses ranges of other clusters than there are.

    Args:
        clusters: Of the whole assignment.
        reads: Layer name, format and range of its input.

    Raises:
        FileFormatError: Names a layer.
    """
    count = 0 if clusters is None else clusters.count
    for name, read, found in reads:
        of_bits = len(read.by_step)
        of_ranges = len(found.steps) if found is not None else 0
        for told, what in ((of_ranges, "ranges"), (of_bits, "bits")):
            if told and told != count:
                raise FileFormatError(
                    f"not a valid assignment: layer {quoted(name)} has {what} for {told} "
                    f"clusters of steps, and there are {count}"
                )


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
