"""Channels that are sorted by their width, where the next layers can read them in that order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from mpq.network.batch import Batch
from mpq.network.channel_readers import channel_readers
from mpq.network.modules import weight_of
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.channel_bits import OUTPUTS
from mpq.quantization.stored import StoredWeight, signature_of
from mpq.quantization.tensor_format import Granularity, TensorFormat


@final
@dataclass(frozen=True, eq=False)
class Reordered:
    """Which layers of a network give their channels by width, and which read them so.

    Args:
        sorted: Layers whose output channels come by width, the fewest bits first.
        inputs: Layer name to ``[I]``: the input channel that each one of its own was before.
    """

    sorted: frozenset[str]
    inputs: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        batch: Batch | None,
        layers: Sequence[AssignedLayer],
        plain: Sequence[str],
    ) -> Self:
        """Of the layers that are about to be divided.

        A layer that reads such channels keeps its scales: it has one for a row, or none.

        Args:
            module: With original weights.
            batch: An example, on its device; ``None``: every order stays.
            layers: What they are assigned.
            plain: Linear layers and convolutions whose weights can be replaced.
        """
        if batch is None:
            return cls(frozenset(), {})
        known = {layer.name: layer for layer in layers}
        able = {x.name for x in layers if _is_divided(x.precision.weight) and x.name in plain}
        found = {
            name: readers
            for name, readers in channel_readers(module, batch, plain).items()
            if name in able and all(_reads_any_order(known.get(x)) for x in readers)
        }
        inputs = {x: order_of(known[n].precision.weight) for n, own in found.items() for x in own}
        return cls(frozenset(found), inputs)

    def read(
        self, name: str, layer_module: nn.Module, whole: StoredWeight | None
    ) -> StoredWeight | None:
        """Puts a layer's input columns in the order in which its channels come, in place.

        Args:
            name: The layer's; one that reads no sorted channels stays.
            layer_module: Of our own copy.
            whole: Its codes; they come back in that order. ``None``: it has none.
        """
        if name not in self.inputs:
            return whole
        weight, columns = weight_of(layer_module).detach(), self.inputs[name]
        moved = weight[:, columns.to(weight.device)]
        layer_module.weight = nn.Parameter(moved, requires_grad=False)
        if whole is None:
            return None
        codes = whole.codes.reshape(*moved.shape[:2], -1)[:, columns.numpy()]
        rows = moved.flatten(1).float().cpu().numpy()
        return replace(whole, codes=codes.reshape(len(codes), -1), signature=signature_of(rows))


def order_of(tensor_format: TensorFormat) -> Tensor:
    """``[O]`` output channels by their width, those of one width in order."""
    assert tensor_format.channels is not None
    return torch.from_numpy(tensor_format.channels.columns).argsort(stable=True)


def _is_divided(weight: TensorFormat) -> bool:
    return weight.channels is not None and weight.channels.axis == OUTPUTS


def _reads_any_order(layer: AssignedLayer | None) -> bool:
    """Whether nothing but a weight's columns depends on the order of what a layer reads."""
    if layer is None:
        return True  # stays as it came, but for its columns
    weight, read = layer.precision.weight, layer.precision.activation
    has_row_scales = weight.granularity in (Granularity.CHANNEL, Granularity.TENSOR)
    is_free = weight.is_exact or not weight.number.needs_scale or has_row_scales
    is_plain = weight.branch is None and not weight.is_coupled
    return is_free and is_plain and read.granularity is not Granularity.INPUT_CHANNEL
