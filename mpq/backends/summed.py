"""A layer whose inputs differ in bits, as layers that each read some of them."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from mpq.network.modules import share_parameters, weight_of
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.channel_bits import INPUTS, ChannelBits
from mpq.quantization.stored import StoredWeight, signature_of
from mpq.quantization.tensor_format import Granularity


@final
class Summed(nn.Module):
    """Layers that each read some input channels of one layer, whose outputs are added up.

    Args:
        parts: The layers.
        inputs: The channels that each reads, ascending.
        axis: Of the channels in an input.
    """

    def __init__(self, parts: list[nn.Module], inputs: list[Tensor], axis: int) -> None:
        super().__init__()
        self.parts, self.axis = nn.ModuleList(parts), axis
        for place, some in enumerate(inputs):
            self.register_buffer(f"inputs_{place}", some, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the one layer gives."""
        outputs = [
            part(x.index_select(self.axis, self.get_buffer(f"inputs_{place}")))
            for place, part in enumerate(self.parts)
        ]
        return torch.stack(outputs).sum(dim=0)


def can_sum(layer: AssignedLayer) -> bool:
    """Whether input channels are whole in one width each, and are rounded alike apart.

    A scale that is found for a token would be found anew for some of its numbers.
    """
    channels, read = layer.precision.weight.channels, layer.precision.activation
    is_inputs = channels is not None and channels.axis == INPUTS
    is_alike = read.is_exact or read.granularity in (Granularity.NONE, Granularity.TENSOR)
    return is_inputs and is_alike and channels is not None and _is_whole(channels, layer)


def _is_whole(channels: ChannelBits, layer: AssignedLayer) -> bool:
    by_input = channels.columns.reshape(layer.weight_shape[1], -1)
    return bool((by_input == by_input[:, :1]).all())


Made = list[tuple[AssignedLayer, StoredWeight]]


def summed(
    layer: AssignedLayer, layer_module: nn.Module, whole: StoredWeight
) -> tuple[Summed, Made]:
    """The layers of each width, and what they are assigned; inputs of 0 bits are read by none.

    Args:
        layer: One of ``can_sum``.
        layer_module: A plain linear layer or convolution without groups, with its original weight.
        whole: Its codes.
    """
    weight, size = layer.precision.weight, len(whole.codes[0]) // layer.weight_shape[1]
    assert weight.channels is not None
    cells = weight.channels.columns
    of_scales = weight.channels.of_scales(weight.numbers_per_scale(len(cells)))[0]
    parts, inputs, made = list[nn.Module](), list[Tensor](), Made()
    widths = [(i, own) for i, own in enumerate(weight.by_channel) if own.number.has_codes]
    for place, (column, own) in enumerate(widths):
        some = torch.from_numpy((cells[::size] == column).nonzero()[0])
        part = _with_inputs(layer_module, some, has_bias=place == 0)
        scales = (of_scales == column).nonzero()[0]
        # Blocks of one width have one scale, where groups have none.
        scales = scales[:1] if weight.has_tied_scales else scales
        stored = StoredWeight(
            whole.codes[:, cells == column],
            whole.scale[:, scales],
            whole.zero_point[:, scales],
            signature_of(weight_of(part).detach().flatten(1).float().cpu().numpy()),
        )
        each = replace(
            layer,
            name=f"{layer.name}.parts.{place}",
            weight_shape=(layer.weight_shape[0], len(some), *layer.weight_shape[2:]),
            precision=replace(layer.precision, weight=own),
        )
        parts.append(part)
        inputs.append(some.to(weight_of(layer_module).device))
        made.append((each, stored.by_itself(own)))
    axis = -1 if isinstance(layer_module, nn.Linear) else 1
    return Summed(parts, inputs, axis).eval(), made


def _with_inputs(layer_module: nn.Module, some: Tensor, has_bias: bool) -> nn.Module:
    """The layer with some of its input channels."""
    part, weight = share_parameters(layer_module), weight_of(layer_module)
    part.weight = nn.Parameter(weight.detach()[:, some.to(weight.device)], requires_grad=False)
    if not has_bias:
        part.register_parameter("bias", None)
    if isinstance(part, nn.Linear):
        part.in_features = len(some)
    else:
        part.in_channels = len(some)  # type: ignore[assignment]
    return part
