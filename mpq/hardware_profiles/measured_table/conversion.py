"""What it costs to store a tensor in another number format between two layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, final

import numpy as np

from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import Layer
from mpq.problem.cost_table import PairwiseCost
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True)
class Conversion:
    """From one number format to another, as an operation of its own.

    Args:
        from_format: Name of the number format that a tensor is in, such as ``fp32``.
        to_format: Name of the format that the tensor is written in.
        seconds_per_call: What a conversion takes, however small its tensor is.
        seconds_per_element: What each element of the converted tensor adds.
        source: Publication or measurement that both times are from.

    Raises:
        UnknownNameError: If there is no such number format.
        InputError: If a time is negative or not finite.
    """

    from_format: str
    to_format: str
    seconds_per_call: float
    seconds_per_element: float
    source: str

    def __post_init__(self) -> None:
        for name in (self.from_format, self.to_format):
            if name not in NUMBER_FORMATS:
                raise UnknownNameError("number format", name, NUMBER_FORMATS)
        for seconds in (self.seconds_per_call, self.seconds_per_element):
            # Stated so that nan fails: it is neither above nor below 0.
            if not (isfinite(seconds) and seconds >= 0):
                raise InputError(
                    f"conversion from {self.from_format} to {self.to_format}: times are finite "
                    f"and at least 0; got {seconds}"
                )

    @property
    def key(self) -> tuple[str, str]:
        """Both formats."""
        return self.from_format, self.to_format

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def conversion_pairs(
    conversions: Mapping[tuple[str, str], Conversion],
    layers: Sequence[Layer],
    candidates: Sequence[Precision],
    batch_size: int,
    can_run: Callable[[Layer, Precision], bool],
) -> tuple[PairwiseCost, ...]:
    """Seconds of storing what a layer reads in its own format: at most one pair per layer.

    A layer reads its input in the number format of its activations, and leaves its output in that
    format. What several layers feed (a residual stream, a concatenation) is one tensor, taken to
    have the format of whichever of them runs last. Layers that read one tensor share the
    conversion: it is counted for the first of them. Equal number formats cost nothing, whatever
    their scales.

    Args:
        conversions: Known conversions by both formats, as in ``Conversion.key``.
        layers: In the order in which they run.
        candidates: ``B`` precisions.
        batch_size: How many examples run at once.
        can_run: Whether the device runs a layer at a precision.

    Raises:
        InputError: If formats meet that no conversion is known for.
    """
    place = {layer.name: position for position, layer in enumerate(layers)}
    pairs = []
    for layer in layers:
        # Layers left out have no format to convert from, and a layer that feeds itself through a
        # loop is no pair.
        feeders = [place[name] for name in layer.fed_by if name in place and name != layer.name]
        # Who reads the same tensor as another layer finds it converted: both share a precision.
        if feeders and layer.input_of is None:
            # One tensor, however many layers wrote it: a pair with each would convert it several
            # times.
            last = layers[max(feeders)]
            pairs.append(_pair(conversions, last, layer, candidates, batch_size, can_run))
    return tuple(pairs)


def _pair(
    conversions: Mapping[tuple[str, str], Conversion],
    first: Layer,
    second: Layer,
    candidates: Sequence[Precision],
    batch_size: int,
    can_run: Callable[[Layer, Precision], bool],
) -> PairwiseCost:
    values = np.zeros((len(candidates), len(candidates)))
    for row, before in enumerate(candidates):
        for column, after in enumerate(candidates):
            formats = before.activation.number.name, after.activation.number.name
            # Left at 0: pairs must be finite, and a nan of either layer keeps the assignment out.
            if formats[0] == formats[1] or not (can_run(first, before) and can_run(second, after)):
                continue
            if formats not in conversions:
                raise InputError(
                    f"layer {second.name!r} at {after} reads what {first.name!r} at {before} "
                    f"writes, but the table has no conversion from {formats[0]} to {formats[1]} "
                    f"(it has {', '.join(' to '.join(key) for key in conversions)}): add it, or "
                    "leave one of the precisions out"
                )
            found = conversions[formats]
            # Elements are counted over all calls already, seconds per call are not.
            calls = second.calls * found.seconds_per_call
            elements = second.input_elements * batch_size
            values[row, column] = calls + found.seconds_per_element * elements
    return PairwiseCost(first.name, second.name, values)
