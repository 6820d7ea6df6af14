"""What layers do to factors of channels: they read those of their inputs, and make new ones."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from mpq.network.arguments import tensors_in
from mpq.transforms.channels import Axis, ChannelTrace, Effect, Reader
from mpq.transforms.label_trace import Call, constant_along, vector_along
from mpq.transforms.parameter_views import View

if TYPE_CHECKING:
    from mpq.transforms.spaces import SpaceTrace

Rule = Callable[[ChannelTrace, Call], None]
SHORTCUT: Final = "is added to another tensor, such as a shortcut"
_BATCH_NORMS: Final = ("batch_norm", "no_training")


def matrix_product(trace: ChannelTrace, call: Call) -> None:
    """A product is a linear layer where the right matrix is a parameter."""
    bias, (x, weight) = (None, call.args) if len(call.args) == 2 else (call.args[0], call.args[1:3])
    view = trace.views.of(weight)
    axes = None if view is None else view.matrix_axes
    is_plain = call.kwargs.get("beta", 1) == 1 and call.kwargs.get("alpha", 1) == 1
    if view is None or axes is None or not is_plain:
        trace.end([bias] if isinstance(bias, Tensor) else [], SHORTCUT)
        _product(trace, call, x, weight)
        return
    inner, outer = axes
    effects = _reads(trace, x, -1, view, inner, outer, bias=vector_name(trace, bias))
    _makes(trace, call, view, outer, bias, -1, effects)


def attention(trace: ChannelTrace, call: Call) -> None:
    """Scaled dot-product attention mixes values of one channel, whatever queries and keys say."""
    query, key, value = call.args[:3]
    result = tensors_in(call.result)[0]
    trace.tell(result, "attention")
    trace.end([query, key, call.args[3:], call.kwargs], "goes through softmax")
    for group, labels in trace.labels(value).items():
        if not constant_along(labels, -2):
            trace.end_channels(group, labels, "goes through attention")
            continue
        heads = result.shape[1] // labels.shape[1]
        first = labels[..., :1, :].repeat_interleave(heads, dim=1)
        trace.give(result, {group: first.expand(result.shape)})


def convolution(trace: ChannelTrace, call: Call) -> None:
    """A convolution reads channels of its inputs, and makes those of its outputs."""
    x, weight, bias, *_, is_transposed, _, groups = call.args
    view = trace.views.of(weight)
    if view is None or None in view.axes:
        trace.end([x, weight, bias], "goes through a convolution with a computed weight")
        return
    outer = 1 if is_transposed else 0
    per_group = x.shape[1] // groups
    if is_transposed or groups == 1:
        effects = _reads(trace, x, 1, view, 1 - outer, outer)
    elif per_group == 1:  # depthwise: one channel meets the rows of one group
        effects = _reads(trace, x, 1, view, 0, 0, repeats=weight.shape[0] // groups)
    else:
        effects = {}
        trace.end([x], "is read by a convolution of several groups")
    if is_transposed and groups > 1:
        trace.use(view, effects)
        trace.end([bias], "")
        trace.tell(call.result, "a transposed convolution of several groups")
        return
    _makes(trace, call, view, outer, bias, 1, effects)


def normalizes(weight_place: int, channel_axis: int) -> Rule:
    """A normalization with a weight of its own, and a bias behind it, makes channels."""

    def rule(trace: ChannelTrace, call: Call) -> None:
        x, weight = call.args[0], call.args[weight_place]
        result = tensors_in(call.result)[0]
        before = _feeding(trace, x) if call.operation.endswith(_BATCH_NORMS) else ""
        trace.end([x], f"goes through {call.operation}")
        trace.tell(result, f"{call.operation} without a weight")
        bias = None if call.operation == "_fused_rms_norm" else call.args[weight_place + 1]
        view = trace.views.of(weight)
        if view is None or len(view.axes) != 1:
            trace.end([weight, bias], "")
            return
        call = Call(call.operation, call.func, call.args, call.kwargs, result)
        _makes(trace, call, view, 0, bias, channel_axis, {}, is_layer=False, before=before)

    return rule


def embeds(trace: ChannelTrace, call: Call) -> None:
    """An embedding makes the channels of its rows."""
    view = trace.views.of(call.args[0])
    trace.tell(call.result, "an embedding")
    if view is not None and view.axes == (0, 1):
        _makes(trace, call, view, 1, None, -1, {}, is_layer=False)
    else:
        trace.end(call.args, "")


def _feeding(trace: ChannelTrace, x: Any) -> str:
    """The kernel whose output channels a tensor has, as they are; empty: another tensor."""
    for group, labels in trace.labels(x).items():
        found = trace.groups[group]
        if found.is_layer and vector_along(labels, 1) == tuple(range(found.size)):
            return found.members[0].parameter
    return ""


def _product(trace: ChannelTrace, call: Call, left: Tensor, right: Tensor) -> None:
    """Of two tensors: factors that are the same for all terms of a sum come through."""
    trace.tell(call.result, "a product of two tensors")
    shape = call.result.shape
    for group in trace.labels(left).keys() & trace.labels(right).keys():
        trace.end_channels(group, trace.labels(left)[group], "is multiplied with itself")
    for x, axis in ((left, -1), (right, -2)):
        for group, labels in trace.labels(x).items():
            if constant_along(labels, axis):
                first = labels.narrow(axis, 0, 1)
                trace.give(call.result, {group: first.expand(shape)})
            else:
                trace.end_channels(group, labels, "is summed up with other channels")
        trace.unknown_use(x)


def vector_name(trace: "ChannelTrace | SpaceTrace", x: Any) -> str:
    """The parameter that a tensor is, if it is a vector; empty: another tensor, or none."""
    view = trace.views.of(x)
    return view.name if view is not None and len(view.axes) == 1 else ""


def _reads(
    trace: ChannelTrace, x: Tensor, channel_axis: int, view: View, axis: int, out: int,
    repeats: int = 1, bias: str = "",
) -> dict[Effect, Axis]:  # fmt: skip
    """A layer meets channels along an axis of its weight; each of them ``repeats`` rows of it."""
    found: dict[Effect, Axis] = {}
    trace.layers[view.name] = None
    trace.unknown_use(x)
    if not trace.labels(x):
        trace.unread.setdefault(view.name, f"reads what {trace.told(x)} gives")
    for group, labels in trace.labels(x).items():
        inputs = vector_along(labels, channel_axis)
        if inputs is None:
            trace.end_channels(group, labels, "is mixed up with other channels")
            continue
        along = tuple(channel for channel in inputs for _ in range(repeats))
        found[group, "reads"] = Axis(view.name, axis, along)
        trace.read(group, Reader(found[group, "reads"], inputs, out, bias))
    return found


def _makes(
    trace: ChannelTrace,
    call: Call,
    view: View,
    axis: int,
    bias: Any,
    channel_axis: int,
    effects: Mapping[Effect, Axis],
    is_layer: bool = True,
    before: str = "",
) -> None:
    """A weight makes the channels of a result, and a bias with it."""
    result = call.result
    count = result.shape[channel_axis]
    channels = tuple(range(count))
    bias_view = trace.views.of(bias)
    members = [Axis(view.name, axis, channels)]
    if bias_view is not None and bias_view.vector_axis is not None:
        bias_axis = bias_view.axes[bias_view.vector_axis]
        assert bias_axis is not None
        members.append(Axis(bias_view.name, bias_axis, channels))
    elif isinstance(bias, Tensor):  # a bias that is computed
        trace.use(view, effects)
        trace.end([bias], "")
        trace.tell(result, "a layer whose bias is computed")
        return
    group = trace.group(view, members, is_layer, before)
    trace.use(view, {**effects, (group, "makes"): members[0]})
    if bias_view is not None:
        trace.use(bias_view, {(group, "makes"): members[-1]})
    trace.give(result, {group: along(channel_axis, result)})
    trace.tell(result, view.name)


def along(axis: int, result: Tensor) -> Tensor:
    """Labels ``0, 1, ...`` along an axis."""
    shape = [1] * result.ndim
    shape[axis] = result.shape[axis]
    return torch.arange(result.shape[axis], device=result.device).view(shape).expand(result.shape)
