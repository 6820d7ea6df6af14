"""What torch's operations do to factors of channels: one function for every kind of operation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.network.arguments import tensors_in
from mpq.transforms.channels import (
    FREE,
    Axis,
    Call,
    ChannelTrace,
    Effect,
    Reader,
    constant_along,
    vector_along,
)
from mpq.transforms.parameter_views import View

Rule = Callable[[ChannelTrace, Call], None]
SHORTCUT: Final = "is added to another tensor, such as a shortcut"


def moves(trace: ChannelTrace, call: Call) -> None:
    """Numbers change their places, and labels with them."""
    x, rest = call.args[0], call.args[1:]
    trace.tell(call.result, trace.told(x))
    for group, labels in trace.labels(x).items():
        moved = call.func(labels, *rest, **call.kwargs)
        for tensor, of_it in zip(tensors_in(call.result), tensors_in(moved), strict=True):
            trace.give(tensor, {group: of_it})
    trace.unknown_use(x)  # a part of a parameter


def reshapes(trace: ChannelTrace, call: Call) -> None:
    """As ``moves``; labels need not lie in memory as the numbers do."""
    x = call.args[0]
    trace.tell(call.result, trace.told(x))
    for group, labels in trace.labels(x).items():
        trace.give(call.result, {group: labels.reshape(call.result.shape)})
    trace.unknown_use(x)


def keeps(trace: ChannelTrace, call: Call) -> None:
    """f(s x) = s f(x) of every number: the result has the same labels."""
    x = call.args[0]
    trace.tell(call.result, trace.told(x))
    trace.give(call.result, trace.labels(x))
    trace.unknown_use(call.args, call.kwargs)


def joins(trace: ChannelTrace, call: Call) -> None:
    """``cat`` and ``stack``: what has no label of a group is not reached by its factors."""
    tensors = list(call.args[0])
    trace.tell(call.result, call.operation)
    groups = dict.fromkeys(group for x in tensors for group in trace.labels(x))
    for group in groups:
        parts = [_labels_or_free(trace, x, group) for x in tensors]
        trace.give(call.result, {group: call.func(parts, *call.args[1:], **call.kwargs)})
    trace.unknown_use(tensors)


def multiplies(trace: ChannelTrace, call: Call) -> None:
    """A product of numbers keeps the factors of both; one with a parameter makes channels."""
    first, second = call.args[:2]
    result, both = call.result, trace.labels(first).keys() & trace.labels(second).keys()
    trace.tell(result, call.operation)
    for group in both:  # a factor would come twice
        trace.end_channels(group, trace.labels(first)[group], "is multiplied with itself")
    given: dict[str, Tensor] = {}
    for x in (first, second):
        if call.operation.endswith("_") and x is second:  # labels of what is written to stay
            trace.end([x], f"goes through {call.operation}")
        else:
            given |= {g: labels.expand(result.shape) for g, labels in trace.labels(x).items()}
    for x in (first, second):
        view = trace.views.of(x)
        if view is not None:
            given |= _channels_of_vector(trace, view, x, result)
    trace.give(result, given)


def divides(trace: ChannelTrace, call: Call) -> None:
    """A quotient keeps the factors of what is divided."""
    trace.tell(call.result, call.operation)
    trace.end(call.args[1:2], "is a divisor")
    labels = trace.labels(call.args[0])
    trace.give(call.result, {g: own.expand(call.result.shape) for g, own in labels.items()})
    trace.unknown_use(call.args[:1])


def adds(trace: ChannelTrace, call: Call) -> None:
    """A sum keeps factors where both have the same one, or a parameter can take it up: a bias."""
    first, second = call.args[:2]
    result = call.result
    trace.tell(result, "a sum (a shortcut)")
    of_first, of_second = trace.labels(first), trace.labels(second)
    effects: dict[Effect, Axis] = {}
    for group in dict.fromkeys([*of_first, *of_second]):
        found = [x[group].expand(result.shape) for x in (of_first, of_second) if group in x]
        other = second if group in of_first else first
        view = None if len(found) == 2 else trace.views.of(other)
        axis = None if view is None else _bias_axis(view, other, found[0])
        if (len(found) == 2 and torch.equal(*found)) or axis is not None:
            trace.give(result, {group: found[0]})
        else:
            for labels in found:
                trace.end_channels(group, labels, SHORTCUT)
        if axis is not None:
            effects[group, "makes"] = axis
            trace.groups[group].add(axis)
    for x in (first, second):
        view = trace.views.of(x)
        if view is not None:
            trace.use(view, effects)


def reduces(trace: ChannelTrace, call: Call) -> None:
    """Means, sums and maxima over numbers of one factor keep it."""
    x, result = call.args[0], call.result
    trace.tell(result, trace.told(x))
    trace.unknown_use(x)
    axes = call.args[1] if len(call.args) > 1 else None
    if not axes or not isinstance(result, Tensor):
        trace.end([x], f"goes through {call.operation} over all numbers")
        return
    axes = [axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)]
    for group, labels in trace.labels(x).items():
        if not constant_along(labels, *axes):
            trace.end_channels(group, labels, f"goes through {call.operation} over channels")
            continue
        kept = labels[tuple(slice(0, 1) if i in axes else slice(None) for i in range(x.ndim))]
        trace.give(result, {group: kept.reshape(result.shape)})


def pools(spatial: int) -> Rule:
    """Pooling over the last axes keeps factors that are the same all over them."""

    def rule(trace: ChannelTrace, call: Call) -> None:
        x, result = call.args[0], tensors_in(call.result)[0]
        trace.tell(result, trace.told(x))
        trace.unknown_use(x)
        axes = range(x.ndim - spatial, x.ndim)
        for group, labels in trace.labels(x).items():
            if not constant_along(labels, *axes):
                trace.end_channels(group, labels, f"goes through {call.operation} over channels")
                continue
            first = labels[(..., *[slice(0, 1)] * spatial)]
            trace.give(result, {group: first.expand(result.shape)})

    return rule


def matrix_product(trace: ChannelTrace, call: Call) -> None:
    """``mm`` and ``addmm`` are linear layers where the right matrix is a parameter."""
    bias, (x, weight) = (None, call.args) if len(call.args) == 2 else (call.args[0], call.args[1:3])
    view = trace.views.of(weight)
    is_plain = call.kwargs.get("beta", 1) == 1 and call.kwargs.get("alpha", 1) == 1
    if view is None or None in view.axes or not is_plain:
        trace.end([bias] if isinstance(bias, Tensor) else [], SHORTCUT)
        _product(trace, call, x, weight)
        return
    inner, outer = view.axes
    assert inner is not None
    assert outer is not None
    effects = _reads(trace, x, -1, view, inner, outer)
    _makes(trace, call, view, outer, bias, -1, effects)


def batched_product(trace: ChannelTrace, call: Call) -> None:
    """``bmm`` of two tensors, such as attention's weights and values."""
    if call.operation != "bmm":
        trace.end(call.args[:1], SHORTCUT)
    _product(trace, call, *call.args[-2:])


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


def _labels_or_free(trace: ChannelTrace, x: Tensor, group: str) -> Tensor:
    found = trace.labels(x).get(group)
    return torch.full(x.shape, FREE, device=x.device) if found is None else found


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


def _reads(
    trace: ChannelTrace, x: Tensor, channel_axis: int, view: View, axis: int, out: int,
    repeats: int = 1,
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
        trace.read(group, Reader(found[group, "reads"], inputs, out))
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
    trace.give(result, {group: _along(channel_axis, result)})
    trace.tell(result, view.name)


def _along(axis: int, result: Tensor) -> Tensor:
    """Labels ``0, 1, ...`` along an axis."""
    shape = [1] * result.ndim
    shape[axis] = result.shape[axis]
    return torch.arange(result.shape[axis], device=result.device).view(shape).expand(result.shape)


def _channels_of_vector(
    trace: ChannelTrace, view: View, x: Tensor, result: Tensor
) -> dict[str, Tensor]:
    """A product with a vector that is a parameter (RMSNorm's weight) makes channels."""
    place = view.vector_axis
    if place is None or x.numel() != x.shape[place]:
        trace.use(view, {})
        return {}
    axis, own = place - x.ndim, view.axes[place]
    assert own is not None
    if result.shape[axis] != x.numel():
        trace.use(view, {})
        return {}
    member = Axis(view.name, own, tuple(range(x.numel())))
    group = trace.group(view, [member], is_layer=False)
    trace.use(view, {(group, "makes"): member})
    trace.tell(result, view.name)
    return {group: _along(axis, result)}


def _bias_axis(view: View, x: Tensor, labels: Tensor) -> Axis | None:
    """The axis of a parameter that is added to labelled numbers, if one factor fits each entry."""
    place = view.vector_axis
    if place is None or x.numel() != x.shape[place] or not labels.numel():
        return None
    axis, own = place - x.ndim, view.axes[place]
    found = vector_along(labels, axis)
    if own is None or found is None or len(found) != x.numel():
        return None
    return Axis(view.name, own, found)


def _rules(rule: Rule, names: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_BATCH_NORMS: Final = ("batch_norm", "no_training")
RULES: Final[Mapping[str, Rule]] = {
    **_rules(
        moves,
        "permute transpose t expand slice select split split_with_sizes chunk unbind unsqueeze "
        "squeeze flip roll repeat narrow index_select movedim swapaxes channel_shuffle "
        "pixel_shuffle pixel_unshuffle".split(),
    ),
    **_rules(reshapes, "view _unsafe_view reshape _reshape_alias flatten unflatten".split()),
    **_rules(
        keeps,
        "relu relu_ leaky_relu leaky_relu_ _prelu_kernel abs neg clone _to_copy alias detach "
        "dropout feature_dropout".split(),
    ),
    **_rules(joins, ("cat", "stack")),
    **_rules(multiplies, ("mul", "mul_")),
    **_rules(divides, ("div", "div_")),
    **_rules(adds, ("add", "add_", "sub")),
    **_rules(reduces, ("mean", "sum", "amax", "amin")),
    **_rules(pools(1), ("max_pool1d", "avg_pool1d", "upsample_nearest1d", "upsample_linear1d")),
    **_rules(
        pools(2),
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d".split(),
    ),
    **_rules(
        pools(3),
        "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
        "upsample_nearest3d upsample_trilinear3d".split(),
    ),
    **_rules(matrix_product, ("mm", "addmm")),
    **_rules(batched_product, ("bmm", "baddbmm")),
    **_rules(
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable".split(),
    ),
    "convolution": convolution,
    "native_layer_norm": normalizes(2, -1),
    "_fused_rms_norm": normalizes(2, -1),
    **_rules(
        normalizes(1, 1),
        "native_batch_norm cudnn_batch_norm miopen_batch_norm native_group_norm "
        "_native_batch_norm_legit_no_training".split(),
    ),
    "embedding": embeds,
}
"""Operation of ATen to its rule; whatever is not here lets no factor through.

In-place forms are there where the labels of what is written to stay right. A softmax, a GELU or a
ReLU6 is not: f(s x) is another number than s f(x).
"""
