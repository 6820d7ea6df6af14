"""What torch's operations do to a rotated space: one function for every kind of operation."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from mpq.network.arguments import tensors_in
from mpq.transforms.label_trace import ATTENTION, Call, constant_along, vector_along
from mpq.transforms.parameter_views import View
from mpq.transforms.space_layers import attention, convolution, embeds, matrix_product, normalized
from mpq.transforms.spaces import Label, Member, Norm, SpaceTrace

Rule = Callable[[SpaceTrace, Call], None]


def moves(trace: SpaceTrace, call: Call) -> None:
    """Numbers change their places, and labels with them."""
    x, label = call.args[0], trace.label(call.args[0])
    trace.tell(call.result, trace.told(x))
    trace.unknown_use(x)  # a part of a parameter
    if label is not None:
        moved = call.func(label.coordinates, *call.args[1:], **call.kwargs)
        for tensor, own in zip(tensors_in(call.result), tensors_in(moved), strict=True):
            trace.give(tensor, label.shaped(own))


def reshapes(trace: SpaceTrace, call: Call) -> None:
    """As ``moves``; labels need not lie in memory as the numbers do."""
    label = trace.label(call.args[0])
    trace.tell(call.result, trace.told(call.args[0]))
    trace.unknown_use(call.args[0])
    if label is not None:
        trace.give(call.result, label.shaped(label.coordinates.reshape(call.result.shape)))


def keeps(trace: SpaceTrace, call: Call) -> None:
    """The same numbers, or all of them with the other sign."""
    trace.tell(call.result, trace.told(call.args[0]))
    trace.unknown_use(call.args, call.kwargs)
    trace.give(call.result, trace.label(call.args[0]))


def joins(trace: SpaceTrace, call: Call) -> None:
    """``cat``: tensors of one space, or parameters, one behind the other (a class token)."""
    tensors, axis = list(call.args[0]), call.args[1] if len(call.args) > 1 else 0
    trace.tell(call.result, call.operation)
    labels = [trace.label(x) for x in tensors]
    known = next((label for label in labels if label is not None), None)
    vectors = [None if x is None else _vector(x, axis) for x in labels]
    vector = next((found for found in vectors if found is not None), None)
    if known is None or vector is None:
        trace.end(tensors, "is laid beside others")
        return
    place, coordinates = vector
    parts = []
    for x, label, own in zip(tensors, labels, vectors, strict=True):
        is_alike = own is not None and own[0] == place and torch.equal(own[1], coordinates)
        if label is not None and is_alike and _is_plain(label) and _is_plain(known):
            trace.join(known.space, label.space)
        elif label is not None or not _takes_part(trace, known, x, place, coordinates):
            trace.end(tensors, "is laid beside others")
            return
        shape = [1] * x.ndim
        shape[place] = len(coordinates)
        parts.append(coordinates.view(shape).expand(x.shape))
    trace.give(call.result, known.shaped(torch.cat(parts, axis)))


def multiplies(trace: SpaceTrace, call: Call) -> None:
    """By one number for all coordinates; a vector of parameters is a normalization's weight."""
    first, second = call.args[:2]
    of_first, of_second = trace.label(first), trace.label(second)
    trace.tell(call.result, call.operation)
    if of_first is not None and of_second is not None:
        is_square = first is second and _is_plain(of_first)
        if is_square:
            trace.give(call.result, replace(of_first, is_squared=True))
        else:
            trace.end([first, second], "is multiplied with another tensor of its kind")
        return
    label, other = (of_first, second) if of_second is None else (of_second, first)
    if call.operation.endswith("_") and (of_first is None or trace.views.of(other) is not None):
        trace.end([first, second], f"goes through {call.operation}")
    elif label is None:
        trace.unknown_use(first, second)
    else:
        _scaled(trace, call, label, other)


def divides(trace: SpaceTrace, call: Call) -> None:
    """By one number for all coordinates."""
    trace.tell(call.result, call.operation)
    label = trace.label(call.args[0])
    trace.end(call.args[1:2], "is a divisor")
    trace.unknown_use(call.args[:1])
    if label is not None:
        _by_one_number(trace, call, label, call.args[1])


def adds(trace: SpaceTrace, call: Call) -> None:
    """Two tensors of one space, whose spaces become one; or a parameter, which turns with it."""
    first, second = call.args[:2]
    trace.tell(call.result, "a sum (a shortcut)")
    of_first, of_second = trace.label(first), trace.label(second)
    label = of_first or of_second
    if label is None:
        trace.unknown_use(first, second)
        return
    other = second if of_first is not None else first
    coordinates = label.coordinates.expand(call.result.shape)
    if of_first is not None and of_second is not None:
        pair = (of_first, of_second)
        sizes = {trace.space(x).size for x in pair}
        is_alike = len(sizes) == 1 and torch.equal(
            coordinates, of_second.coordinates.expand(call.result.shape)
        )
        if is_alike and all(map(_is_plain, pair)):
            trace.join(of_first.space, of_second.space)
            trace.give(call.result, label.shaped(coordinates))
            return
    elif isinstance(other, Tensor) and not call.kwargs:
        vector = _vector(label.shaped(coordinates))
        is_added = vector is not None and call.operation != "sub"
        if is_added and _is_plain(label) and _takes_part(trace, label, other, *vector):  # type: ignore[misc]
            trace.give(call.result, label.shaped(coordinates))
            return
    trace.end([first, second], "is added to what is not rotated with it")


def powers(trace: SpaceTrace, call: Call) -> None:
    """Squares, of which RMSNorm takes the mean."""
    label = trace.label(call.args[0])
    trace.tell(call.result, call.operation)
    trace.unknown_use(call.args)
    if label is not None and _is_plain(label) and call.args[1] == 2:
        trace.give(call.result, replace(label, is_squared=True))
    else:
        trace.end(call.args, f"goes through {call.operation}")


def reduces(trace: SpaceTrace, call: Call) -> None:
    """A mean over places keeps coordinates; one of squares over a block is that of any rotation."""
    x, label = call.args[0], trace.label(call.args[0])
    trace.tell(call.result, call.operation)
    trace.unknown_use(x)
    if label is None:
        return
    axes = call.args[1] if len(call.args) > 1 else None
    axes = [a % x.ndim for a in ([axes] if isinstance(axes, int) else axes or range(x.ndim))]
    if label.is_squared and len(axes) == 1:
        trace.split_by_lines(label, axes[0])
    elif not label.is_squared and constant_along(label.coordinates, *axes):
        kept = label.coordinates
        for axis in axes:
            kept = kept.narrow(axis, 0, 1)
        trace.give(call.result, label.shaped(kept.reshape(call.result.shape)))
    else:
        trace.end_label(label, f"goes through {call.operation} over channels")


def _is_plain(label: Label) -> bool:
    return label.norm is None and not label.is_squared


def _vector(label: Label, without: int | None = None) -> tuple[int, Tensor] | None:
    """The one axis along which coordinates differ, from behind, and ``[n]`` those along it."""
    varying = label.varying
    if len(varying) != 1 or (without is not None and without % label.coordinates.ndim in varying):
        return None
    axis = varying[0]
    found = label.coordinates.movedim(axis, -1).reshape(-1, label.coordinates.shape[axis])[0]
    return axis - label.coordinates.ndim, found


def _takes_part(trace: SpaceTrace, label: Label, x: Any, axis: int, coordinates: Tensor) -> bool:
    """Whether a tensor is a parameter that lies along the space, and turns with it from now on."""
    view = trace.views.of(x)
    if view is None or x.ndim < -axis or x.shape[axis] != len(coordinates):
        return False
    own = view.axes[axis]
    if own is None:
        return False
    member = Member(view.name, own, tuple(coordinates.tolist()))
    trace.use(view.name, [trace.turns(label.space, member)])
    return True


def _scaled(trace: SpaceTrace, call: Call, label: Label, other: Any) -> None:
    view = trace.views.of(other)
    if view is not None and other.numel() > 1:
        _weighted(trace, call, label, view, other)
        return
    trace.unknown_use(other)
    _by_one_number(trace, call, label, other)


def _weighted(trace: SpaceTrace, call: Call, label: Label, view: View, other: Tensor) -> None:
    """Numbers of a space, each multiplied with its entry of a parameter."""
    place = view.vector_axis
    found = None if place is None else vector_along(label.coordinates, place - other.ndim)
    is_vector = [axis for axis in view.axes if axis is not None] == [0]
    if not is_vector or not _is_plain(label) or found != tuple(range(trace.space(label).size)):
        trace.end([*call.args], f"is multiplied with {view.name}")
        trace.tell(call.result, f"a product with {view.name}")
        return
    norm = Norm(view.name)
    trace.use(view.name, [(label.space, norm)])
    trace.give(call.result, replace(label, norm=norm))


def _by_one_number(trace: SpaceTrace, call: Call, label: Label, other: Any) -> None:
    """A factor that is the same for all coordinates of a block, or of what is a block then."""
    coordinates = label.coordinates.expand(call.result.shape)
    found, varying = label.shaped(coordinates), label.shaped(coordinates).varying
    if isinstance(other, Tensor) and other.numel() > 1:
        along = [a for a in varying if _size(other, a - coordinates.ndim) > 1]
        if varying and varying[-1] in along:
            trace.end_label(label, f"goes through {call.operation} with other factors by channel")
            return
        if along:
            trace.split_by_lines(found, varying[-1])
    trace.give(call.result, found)


def _size(x: Tensor, axis: int) -> int:
    return x.shape[axis] if x.ndim >= -axis else 1


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Final[Mapping[str, Rule]] = {
    **_rules(
        moves,
        "permute transpose t expand slice select split split_with_sizes chunk unbind unsqueeze "
        "squeeze flip roll repeat narrow index_select movedim swapaxes",
    ),
    **_rules(reshapes, "view _unsafe_view reshape _reshape_alias flatten unflatten"),
    **_rules(keeps, "neg clone _to_copy alias detach dropout feature_dropout"),
    **_rules(joins, "cat"),
    **_rules(multiplies, "mul mul_"),
    **_rules(divides, "div div_"),
    **_rules(adds, "add add_ sub"),
    **_rules(reduces, "mean sum"),
    "pow": powers,
    **_rules(matrix_product, "mm addmm bmm baddbmm"),
    **_rules(attention, ATTENTION),
    "convolution": convolution,
    "native_layer_norm": normalized,
    "_fused_rms_norm": normalized,
    "embedding": embeds,
}
"""Operation of ATen to its rule; whatever is not here lets no rotation through."""
