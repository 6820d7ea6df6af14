"""What an assignment's JSON says of a tensor's format, for readers that do not have mpq."""

from typing import Any

import numpy as np

from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS, ChannelBits
from mpq.quantization.step_bits import StepBits
from mpq.quantization.tensor_format import TensorFormat


def format_to_dict(tensor_format: TensorFormat) -> dict[str, Any]:
    """The same as the precision's short spelling, in full."""
    return {
        "number": tensor_format.number.name,
        "bits": tensor_format.number.bits,
        "scheme": "symmetric" if tensor_format.symmetric else "affine",
        "granularity": tensor_format.granularity.value,
        "group_size": tensor_format.group_size,
        # Of few: files without it are read by earlier versions as well.
        **({} if tensor_format.scale is None else {"scale": tensor_format.scale}),
        **({"zero_point": "float"} if tensor_format.float_zero else {}),
        **_channels_to_dict(tensor_format.channels),
        **_steps_to_dict(tensor_format.steps),
        **({} if tensor_format.branch is None else {"branch": str(tensor_format.branch)}),
    }


def _channels_to_dict(channels: ChannelBits | None) -> dict[str, Any]:
    """Bits of every output channel, input, or group of each row; ``bits`` are then the most."""
    if channels is None:
        return {}
    bits = np.array([number.bits for number in channels.numbers])
    name = {OUTPUTS: "channel_bits", INPUTS: "input_bits", GROUPS: "group_bits"}[channels.axis]
    is_groups = channels.axis == GROUPS
    widths = channels.of_scales(channels.block) if is_groups else channels.columns
    return {name: bits[widths].tolist()}


def _steps_to_dict(steps: StepBits | None) -> dict[str, Any]:
    """Bits of every cluster of steps."""
    return {} if steps is None else {"step_bits": [number.bits for number in steps.by_cluster]}
