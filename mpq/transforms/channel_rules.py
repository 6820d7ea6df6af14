"""What torch's operations do to factors of channels: one function for every kind of operation."""

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from mpq.network.arguments import tensors_in
from mpq.transforms.channels import Axis, ChannelTrace, Effect
from mpq.transforms.label_trace import ATTENTION, FREE, Call, constant_along, vector_along
from mpq.transforms.layer_rules import (
    SHORTCUT,
    Rule,
    along,
    attention,
    convolution,
    embeds,
    matrix_product,
    normalizes,
)
from mpq.transforms.parameter_views import View


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
        if call.operation.endswith("_"):  # views of what is written to would miss the new channels
            trace.unknown_use(x)
        elif view is not None:
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
        kept = _first(labels, axes)
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
            first = _first(labels, axes)
            trace.give(result, {group: first.expand(result.shape)})

    return rule


def _labels_or_free(trace: ChannelTrace, x: Tensor, group: str) -> Tensor:
    found = trace.labels(x).get(group)
    return torch.full(x.shape, FREE, device=x.device) if found is None else found


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
    return {group: along(axis, result)}


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


def _first(labels: Tensor, axes: Iterable[int]) -> Tensor:
    """The first entry along some axes, which stay."""
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    """A rule for operations that are written with spaces between."""
    return dict.fromkeys(names.split(), rule)


RULES: Final[Mapping[str, Rule]] = {
    **_rules(
        moves,
        "permute transpose t expand slice select split split_with_sizes chunk unbind unsqueeze "
        "squeeze flip roll repeat narrow index_select movedim swapaxes channel_shuffle "
        "pixel_shuffle pixel_unshuffle",
    ),
    **_rules(reshapes, "view _unsafe_view reshape _reshape_alias flatten unflatten"),
    **_rules(
        keeps,
        "relu relu_ leaky_relu leaky_relu_ _prelu_kernel abs neg clone _to_copy alias detach "
        "dropout feature_dropout",
    ),
    **_rules(joins, "cat stack"),
    **_rules(multiplies, "mul mul_"),
    **_rules(divides, "div div_"),
    **_rules(adds, "add add_ sub"),
    **_rules(reduces, "mean sum amax amin"),
    **_rules(pools(1), "max_pool1d avg_pool1d upsample_nearest1d upsample_linear1d"),
    **_rules(
        pools(2),
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
    ),
    **_rules(
        pools(3),
        "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
        "upsample_nearest3d upsample_trilinear3d",
    ),
    **_rules(matrix_product, "mm addmm bmm baddbmm"),
    **_rules(attention, ATTENTION),
    "convolution": convolution,
    "native_layer_norm": normalizes(2, -1),
    "_fused_rms_norm": normalizes(2, -1),
    **_rules(
        normalizes(1, 1),
        "native_batch_norm cudnn_batch_norm miopen_batch_norm native_group_norm "
        "_native_batch_norm_legit_no_training",
    ),
    "embedding": embeds,
}
"""Operation of ATen to its rule; whatever is not here lets no factor through.

In-place forms are there where the labels of what is written to stay right. A softmax, a GELU or a
ReLU6 is not: f(s x) is another number than s f(x).
"""
