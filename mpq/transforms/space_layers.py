"""What layers do to a rotated space: they read that of their inputs, and make one of their own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mpq.network.arguments import tensors_in
from mpq.transforms.label_trace import Call, constant_along, vector_along
from mpq.transforms.layer_rules import along, vector_name
from mpq.transforms.parameter_views import View
from mpq.transforms.spaces import Label, Member, Norm, SpaceTrace, Use


def matrix_product(trace: SpaceTrace, call: Call) -> None:
    """A product is a linear layer where the right matrix is a parameter."""
    bias, (x, weight) = (None, call.args) if len(call.args) == 2 else (call.args[0], call.args[1:3])
    view = trace.views.of(weight)
    axes = None if view is None else view.matrix_axes
    is_plain = call.kwargs.get("beta", 1) == 1 and call.kwargs.get("alpha", 1) == 1
    if view is None or axes is None or not is_plain:
        trace.end([bias], "is added to a product of two tensors")
        _product(trace, call, x, weight)
        return
    inner, outer = axes
    reads = _reads(trace, x, -1, view, inner, vector_name(trace, bias))
    _makes(trace, call, view, outer, bias, -1, reads)


def attention(trace: SpaceTrace, call: Call) -> None:
    """Scaled dot-product attention mixes values of one head, whatever queries and keys say."""
    query, key, value = call.args[:3]
    result, label = tensors_in(call.result)[0], trace.label(value)
    trace.tell(result, "attention")
    trace.end([query, key, call.args[3:], call.kwargs], "goes through softmax")
    if label is None:
        return
    if label.is_squared or not constant_along(label.coordinates, -2):
        trace.end_label(label, "goes through attention")
        return
    trace.split_by_lines(label, -1)
    heads = result.shape[1] // value.shape[1]
    first = label.coordinates[..., :1, :].repeat_interleave(heads, dim=1)
    trace.give(result, label.shaped(first.expand(result.shape)))


def convolution(trace: SpaceTrace, call: Call) -> None:
    """A convolution reads channels of its inputs, and makes those of its outputs."""
    x, weight, bias, *_, is_transposed, _, groups = call.args
    view = trace.views.of(weight)
    if view is None or None in view.axes or groups > 1:
        trace.end([x, weight, bias], "goes through a convolution of groups, or with other weights")
        trace.tell(call.result, "a convolution of groups")
        return
    label = trace.label(x)
    if label is not None and label.norm is not None:
        # Zeros around the image are no outputs of a normalization.
        trace.end_label(label, f"is read by a convolution behind {label.norm.weight}")
    outer = 1 if is_transposed else 0
    reads = _reads(trace, x, 1, view, 1 - outer, "")
    _makes(trace, call, view, outer, bias, 1, reads)


def normalized(trace: SpaceTrace, call: Call) -> None:
    """RMSNorm and LayerNorm over the last axis: the length of a block is that of any rotation."""
    x, shape, weight = call.args[:3]
    has_mean = call.operation == "native_layer_norm"
    bias = call.args[3] if has_mean else None
    result, label = tensors_in(call.result)[0], trace.label(x)
    trace.tell(result, f"{call.operation} of {trace.told(x)}")
    norm = Norm(vector_name(trace, weight), vector_name(trace, bias))
    is_known = (weight is None or norm.weight) and (bias is None or norm.bias)
    if label is None or not is_known or len(shape) > 1 or label.norm or label.is_squared:
        trace.end([x, weight, bias], f"goes through {call.operation}")
        return
    trace.split_by_lines(label, -1)
    space = trace.space(label)
    space.keeps_mean |= has_mean
    if weight is None:
        trace.give(result, label)
        return
    if vector_along(label.coordinates, -1) != tuple(range(space.size)):
        trace.end([x, weight, bias], f"goes through {call.operation} over a part of its channels")
        return
    for name in (norm.weight, norm.bias):
        if name:
            trace.use(name, [(label.space, norm)])
    trace.give(result, Label(label.space, label.coordinates, norm))


def embeds(trace: SpaceTrace, call: Call) -> None:
    """An embedding makes the coordinates of its rows."""
    view = trace.views.of(call.args[0])
    trace.tell(call.result, "an embedding")
    if view is not None and view.axes == (0, 1):
        _makes(trace, call, view, 1, None, -1, ())
    else:
        trace.end(call.args, "")


def _product(trace: SpaceTrace, call: Call, left: Tensor, right: Tensor) -> None:
    """Of two tensors: what the right one holds comes through, where the left one mixes places."""
    trace.tell(call.result, "a product of two tensors")
    of_left, label = trace.label(left), trace.label(right)
    trace.end([left], "is the left factor of a product of two tensors")
    trace.unknown_use(right)
    if label is None:
        return
    is_mixing_places = constant_along(label.coordinates, -2) and not label.is_squared
    if of_left is not None or not is_mixing_places:
        trace.end_label(label, "is summed up with other channels")
        return
    trace.split_by_lines(label, -1)
    first = label.coordinates.narrow(-2, 0, 1)
    trace.give(call.result, label.shaped(first.expand(call.result.shape)))


def _reads(
    trace: SpaceTrace, x: Tensor, channel_axis: int, view: View, axis: int, bias: str
) -> tuple[Use, ...]:
    """A layer meets coordinates along an axis of its weight."""
    label = trace.label(x)
    trace.unknown_use(x)
    if label is None:
        trace.layers.setdefault(view.name, f"reads what {trace.told(x)} gives")
        return ()
    inputs = vector_along(label.coordinates, channel_axis)
    if inputs is None or label.is_squared:
        trace.end_label(label, "is mixed up with other channels")
        trace.layers.setdefault(view.name, "reads channels that others mix up")
        return ()
    member = Member(view.name, axis, inputs, True, label.norm, bias)
    trace.layers.setdefault(view.name, "")
    return (trace.turns(label.space, member),)


def _makes(
    trace: SpaceTrace,
    call: Call,
    view: View,
    axis: int,
    bias: Any,
    channel_axis: int,
    reads: Sequence[Use],
) -> None:
    """A weight makes the coordinates of a result, and a bias with it."""
    result = call.result
    trace.tell(result, view.name)
    coordinates = tuple(range(result.shape[channel_axis]))
    bias_name = vector_name(trace, bias)
    key = trace.made(view, axis, len(coordinates))
    trace.use(view.name, [*reads, trace.turns(key, Member(view.name, axis, coordinates))])
    label = Label(key, along(channel_axis, result))
    if bias_name:
        trace.use(bias_name, [trace.turns(key, Member(bias_name, 0, coordinates))])
    elif isinstance(bias, Tensor):
        trace.end([bias], "is a bias")
        trace.end_label(label, "is added to a bias that is computed")
    trace.give(result, label)
