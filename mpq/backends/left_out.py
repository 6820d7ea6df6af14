"""Parts of 0 bits, for tools whose weights all have codes: stored in the fewest bits there are."""

from dataclasses import replace

import numpy as np

from mpq._support.names import shortened
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.channel_bits import OUTPUTS, ChannelBits


def with_codes(layer: AssignedLayer) -> AssignedLayer:
    """The layer with output channels of 0 bits in its fewest bits that have a code for 0.

    Codes that are kept of it stay as they are: of 0 bits they are 0, as there.

    Raises:
        PrecisionError: See ``check_has_zero``.
    """
    weight = layer.precision.weight
    channels = weight.channels
    if channels is None or channels.axis != OUTPUTS or channels.numbers[0].has_codes:
        return layer
    check_has_zero(layer)
    numbers, codes = channels.numbers, np.frombuffer(channels.codes, dtype=np.uint8)
    fewest = next(place for place, x in enumerate(numbers) if x.has_codes and x.has_zero)
    columns = np.where(codes == 0, fewest, codes)
    found = ChannelBits.of(numbers, columns, channels.num_channels, channels.block)
    stored = replace(weight, channels=found if isinstance(found, ChannelBits) else None)
    return replace(layer, precision=replace(layer.precision, weight=stored))


def check_has_zero(layer: AssignedLayer) -> None:
    """Refuses a layer with parts of 0 bits whose most bits are signs, which are never 0.

    Raises:
        PrecisionError: Names it, and what to do.
    """
    channels = layer.precision.weight.channels
    assert channels is not None
    if not channels.numbers[0].has_codes and not channels.numbers[-1].has_zero:
        raise PrecisionError(
            f"layer {layer.name!r} at {shortened(str(layer.precision))} has parts of 0 bits beside "
            "signs alone, which have no code for 0; it is simulated alone: search with integers "
            "among its candidates, or without w0"
        )
