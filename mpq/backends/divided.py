"""Weights whose channels have bits of their own, for tools that have one width for a weight."""

from dataclasses import replace
from typing import Final, final

import torch
from torch import Tensor, nn

from mpq.backends.left_out import check_has_zero, with_codes
from mpq.backends.reordered import Reordered, order_of
from mpq.backends.simulate import prepared, quantizer_of
from mpq.backends.summed import Made, can_sum, summed
from mpq.errors import InputError
from mpq.network.batch import Batch
from mpq.network.modules import share_parameters, weight_of
from mpq.network.weight_layout import CHANNEL_FIRST, layout_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import StoredWeight, StoredWeights
from mpq.quantization.tensor_format import Granularity, TensorFormat

DIVIDE, WIDEN = "divide", "widen"
WAYS: Final = {
    DIVIDE: "each width of a weight becomes a layer, and outputs are put side by side or added up",
    WIDEN: "all channels are stored in the width of the widest, with the same numbers",
}
_PLAIN: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
class SideBySide(nn.Module):
    """Layers that read one tensor, with their output channels in the order of one layer's.

    Args:
        parts: The layers.
        order: ``[O]`` where in their outputs, one after the other, each channel is; ``None``: they
            are read in the order in which they come.
        axis: Of the channels in an output.
    """

    order: Tensor | None

    def __init__(self, parts: list[nn.Module], order: Tensor | None, axis: int) -> None:
        super().__init__()
        self.parts, self.axis = nn.ModuleList(parts), axis
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., O, ...]`` of the layers' input."""
        outputs = torch.cat([part(x) for part in self.parts], dim=self.axis)
        if self.order is None:
            return outputs
        return outputs.index_select(self.axis, self.order)


def of_whole_weights(
    model: nn.Module, assignment: Assignment, way: str, batch: Batch | None = None
) -> tuple[nn.Module, Assignment]:
    """A network and an assignment that compute the same, each weight in one width.

    Where ``divide`` cannot divide a layer (an embedding, a grouped or transposed convolution, a
    weight that several layers have, groups that differ in bits, or inputs that are not rounded
    alike apart), its channels are stored in the width of the widest. Inputs that shared a channel's
    scale become groups then, each block of them one, with scales in fp32. Of 0 bits inputs of a
    layer that is divided are left out, and others are stored in other bits, as codes of 0.

    Args:
        model: The network that the assignment was found for; it stays as it is.
        assignment: With channels that have bits of their own; another comes back as it is.
        way: One of ``WAYS``.
        batch: By which layers are found that read such channels by themselves, and can read them
            by width: they need not be put in order then. ``None``: they all are.

    Raises:
        InputError: If there is no such way.
        MismatchError: If the assignment belongs to another network.
        PrecisionError: If parts of 0 bits stand beside signs alone, which are never 0.
    """
    if way not in WAYS:
        told = "; ".join(f"{name}: {what}" for name, what in WAYS.items())
        raise InputError(f"channels of different widths are written by one of: {told}; got {way!r}")
    mixed = {x.name for x in assignment.layers if x.precision.weight.channels is not None}
    if not mixed:
        return model, assignment
    module, quantizer = prepared(model, assignment), quantizer_of(assignment)
    stored = {} if assignment.weights is None else dict(assignment.weights.by_layer)
    layers, names = list[AssignedLayer](), _shared(module)
    plain = [n for n, m in module.named_modules() if _can_divide(m) and n not in names]
    example = batch if way == DIVIDE else None
    by_width = Reordered.of(module, example, [*map(with_codes, assignment.layers)], plain)
    for layer in assignment.layers:
        if layer.name not in mixed | by_width.inputs.keys():
            layers.append(layer)
            continue
        layer_module = module.get_submodule(layer.name)
        whole = by_width.read(layer.name, layer_module, _stored(layer, layer_module, quantizer))
        stored.pop(layer.name, None)
        if layer.name not in mixed or whole is None:
            layers.append(layer)
            stored |= {} if whole is None else {layer.name: whole}
            continue
        is_sorted = layer.name in by_width.sorted
        put, made = (
            _in_layers(layer, layer_module, whole, is_sorted)
            if way == DIVIDE and layer.name in plain
            else _widened(layer, layer_module, whole)
        )
        layers += [each for each, _ in made]
        stored |= {each.name: codes for each, codes in made}
        if put is not layer_module:
            _put(module, layer.name, put)
    for name in by_width.inputs.keys() - {layer.name for layer in assignment.layers}:
        by_width.read(name, module.get_submodule(name), None)
    known = {layer.name for layer in layers}
    rounding = "nearest" if assignment.weights is None else assignment.weights.rounding
    divided = replace(
        assignment,
        layers=tuple(layers),
        ties=tuple(tie for tie in assignment.ties if known.issuperset(tie)),
        # What was folded, transformed or tuned is so in the module.
        folded={},
        reparametrization=None,
        tuned=None,
        weights=StoredWeights(rounding, stored),
    )
    return module, divided


def _shared(module: nn.Module) -> set[str]:
    """Modules that have a weight which another one has, too, or go by two names."""
    found: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _PLAIN):
            found.setdefault(id(part.weight), []).append(name)
    return {name for names in found.values() if len(names) > 1 for name in names}


def _can_divide(layer_module: nn.Module) -> bool:
    is_plain = type(layer_module) in _PLAIN and layout_of(layer_module) == CHANNEL_FIRST
    hooks = layer_module._forward_hooks, layer_module._forward_pre_hooks
    return is_plain and getattr(layer_module, "groups", 1) == 1 and not any(hooks)


def _stored(
    layer: AssignedLayer, layer_module: nn.Module, quantizer: Quantizer
) -> StoredWeight | None:
    """Its codes; ``None``: it has none."""
    tensor_format = layer.precision.weight
    known = quantizer.stored.get((layer.name, tensor_format))
    if known is not None or not tensor_format.number.needs_scale:
        return known
    rows = layout_of(layer_module).to_rows(weight_of(layer_module).detach())
    return quantizer.codes(layer.name, layer_module, tensor_format).stored(rows)


def _in_layers(
    layer: AssignedLayer, layer_module: nn.Module, whole: StoredWeight, is_sorted: bool
) -> tuple[nn.Module, Made]:
    """What takes the layer's place, each width being a layer, and what these are assigned."""
    if not layer.precision.weight.is_coupled:
        layer = with_codes(layer)
        if layer.precision.weight.channels is None:  # the others have all the same bits
            return layer_module, [(layer, whole)]
        put = _side_by_side(layer_module, layer.precision.weight, is_sorted)
        return put, _divided(layer, whole)
    if can_sum(layer):
        return summed(layer, layer_module, whole)
    return _widened(layer, layer_module, whole)


def _widened(
    layer: AssignedLayer, layer_module: nn.Module, whole: StoredWeight
) -> tuple[nn.Module, Made]:
    check_has_zero(layer)
    precision = layer.precision
    weight = precision.weight.by_channel[-1]
    if precision.weight.has_tied_scales and precision.weight.channels is not None:
        size = precision.weight.channels.block
        weight = replace(weight, granularity=Granularity.GROUP, group_size=size, scale="fp32")
    widest = replace(precision, weight=weight)
    return layer_module, [(replace(layer, precision=widest), whole)]


def _divided(layer: AssignedLayer, whole: StoredWeight) -> Made:
    precision, made = layer.precision, Made()
    assert precision.weight.channels is not None
    columns = precision.weight.channels.columns
    for column, own in enumerate(precision.weight.by_channel):
        part = whole.part((columns == column).nonzero()[0]).by_itself(own)
        each = replace(
            layer,
            name=f"{layer.name}.parts.{column}",
            weight_shape=(len(part.codes), *layer.weight_shape[1:]),
            precision=replace(precision, weight=own),
        )
        made.append((each, part))
    return made


def _side_by_side(
    layer_module: nn.Module, tensor_format: TensorFormat, is_sorted: bool
) -> SideBySide:
    assert tensor_format.channels is not None
    columns = torch.from_numpy(tensor_format.channels.columns)
    count = len(tensor_format.by_channel)
    channels = [(columns == column).nonzero()[:, 0] for column in range(count)]
    order = torch.argsort(order_of(tensor_format)).to(weight_of(layer_module).device)
    axis = -1 if isinstance(layer_module, nn.Linear) else 1
    parts = [_with_channels(layer_module, some) for some in channels]
    return SideBySide(parts, None if is_sorted else order, axis).eval()


def _with_channels(layer_module: nn.Module, some: Tensor) -> nn.Module:
    """The layer with some of its channels."""
    part, weight = share_parameters(layer_module), weight_of(layer_module)
    some = some.to(weight.device)
    part.weight = nn.Parameter(weight.detach()[some], requires_grad=False)
    if isinstance(layer_module.bias, Tensor):
        part.bias = nn.Parameter(layer_module.bias.detach()[some], requires_grad=False)
    if isinstance(part, nn.Linear):
        part.out_features = len(some)
    else:
        part.out_channels = len(some)  # type: ignore[assignment]
    return part


def _put(module: nn.Module, name: str, made: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, made)
