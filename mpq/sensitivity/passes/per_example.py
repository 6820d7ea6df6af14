"""Gradient of a layer's weight for every example, from its input and its output's gradient."""

from math import prod

import torch
from torch import Tensor, nn

from mpq.network.tracing import kind_of
from mpq.network.weight_layout import is_hugging_face_conv1d
from mpq.sensitivity.passes.windows import Geometry, windows


def weight_gradients(layer_module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Gradient of one call, per example.

    Args:
        layer_module: A linear layer, convolution or embedding (see ``kind_of``).
        x: Its input, ``[N, ...]``; numbers are taken to the gradient's dtype.
        g: Gradient of its output, ``[N, ...]``.

    Returns:
        ``[N, D]``, ``D`` weights in the weight's own layout, flattened.
    """
    kind = kind_of(layer_module)
    if kind == "embedding":
        return _embedding(x, g, _weight_shape(layer_module))
    x = x.to(g.dtype)
    if kind == "linear":
        return _linear(x, g, is_hugging_face_conv1d(layer_module))
    return _convolution(layer_module, x, g)


def summed_weight_gradients(layer_module: nn.Module, x: Tensor, g: Tensor, group: int) -> Tensor:
    """Gradient of one call, summed over groups of examples: less work where that is enough.

    Args:
        layer_module: A linear layer, convolution or embedding (see ``kind_of``).
        x: Its input, ``[N, ...]``.
        g: Gradient of its output, ``[N, ...]``.
        group: Consecutive examples in a group; the last one may be smaller.

    Returns:
        ``[ceil(N / group), D]``; see ``weight_gradients``.
    """
    if group == 1:
        return weight_gradients(layer_module, x, g)
    kind = kind_of(layer_module)
    assert kind is not None
    if kind.startswith("conv"):
        # Torch's own kernel adds up over the batch, so that one call does a group.
        groups = zip(x.split(group), g.split(group), strict=True)
        return torch.stack([_shared_gradient(layer_module, *part) for part in groups])
    # A group is treated as one example with more positions, over which gradients are summed.
    whole = len(x) // group * group
    parts = [(x[:whole].unflatten(0, (-1, group)), g[:whole].unflatten(0, (-1, group)))]
    parts += [(x[None, whole:], g[None, whole:])] if whole < len(x) else []
    return torch.cat([weight_gradients(layer_module, *part) for part in parts if len(part[0])])


def by_example(tensor: Tensor, num_examples: int, batch_axis: int) -> Tensor | None:
    """The tensor with its examples in the first axis, ``[N, ...]``.

    Args:
        tensor: A layer's input or output, or one of that shape.
        num_examples: Examples in the batch, ``N``.
        batch_axis: Axis of the examples where they are not flattened: 0, or 1 if sequence-first.

    Returns:
        ``None`` if it cannot be split: all examples share it, as a relative position bias, or it
        holds a varying share of each, as what a router sends to an expert.
    """
    # Asked first, because a batch may have as many examples as positions.
    if batch_axis == 1 and tensor.ndim > 1 and tensor.shape[1] == num_examples:
        return tensor.transpose(0, 1)
    if tensor.shape[0] == num_examples:
        return tensor
    if tensor.shape[0] % num_examples == 0:  # examples were flattened into rows, in order
        return tensor.reshape(num_examples, -1, *tensor.shape[1:])
    return None


def _weight_shape(layer_module: nn.Module) -> torch.Size:
    assert isinstance(layer_module.weight, Tensor)
    return layer_module.weight.shape


def _linear(x: Tensor, g: Tensor, is_transposed: bool) -> Tensor:
    x = x.reshape(len(x), -1, x.shape[-1])  # [N, T, I]
    g = g.reshape(len(g), -1, g.shape[-1])  # [N, T, O]
    # Hugging Face's Conv1D stores [I, O], a Linear [O, I].
    left, right = (x, g) if is_transposed else (g, x)
    return (left.transpose(1, 2) @ right).flatten(1)


def _embedding(ids: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    ids, g = ids.reshape(len(ids), -1), g.reshape(len(g), -1, g.shape[-1])  # [N, T], [N, T, E]
    # Added up, because an id may occur more than once in an example.
    gradients = g.new_zeros(len(ids), *shape)
    return gradients.scatter_add_(1, ids[..., None].expand_as(g), g).flatten(1)


def _convolution(layer_module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Correlates what is slid over with what is not; a transposed layer swaps the two."""
    geometry = Geometry.of(layer_module)
    if x.ndim == len(geometry.kernel) + 3:  # several images per example
        flat = _convolution(layer_module, x.flatten(0, 1), g.flatten(0, 1))
        return flat.reshape(*x.shape[:2], -1).sum(dim=1)
    slid, fixed = (g, x) if geometry.is_transposed else (x, g)
    met = windows(geometry.padded(slid), geometry, fixed.shape[2:])
    groups, count = geometry.groups, len(x)
    rows = fixed.reshape(count, groups, fixed.shape[1] // groups, -1)  # [N, groups, F, P]
    shape = (count, groups, slid.shape[1] // groups * prod(geometry.kernel), -1)
    columns = met.reshape(shape)  # [N, groups, C * kernel, P]
    # This way round the product is up to three times as fast as its transpose.
    return (columns @ rows.transpose(2, 3)).transpose(2, 3).flatten(1)


def _shared_gradient(layer_module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """``[D]`` of a convolution, for all examples together: torch's own kernel."""
    geometry = Geometry.of(layer_module)
    if x.ndim == len(geometry.kernel) + 3:  # several images per example
        x, g = x.flatten(0, 1), g.flatten(0, 1)
    padding = [left for left, _ in geometry.padding]
    # The kernel pads with zeros only, and alike on both sides; all else is padded beforehand.
    is_plain = geometry.padding_mode == "constant" and all(a == b for a, b in geometry.padding)
    if not is_plain:
        x, padding = geometry.padded(x), [0] * len(padding)
    weight = g.new_empty(_weight_shape(layer_module))  # only its shape is read
    _, gradient, _ = torch.ops.aten.convolution_backward(
        g, x.to(g.dtype), weight, None, geometry.stride, padding, geometry.dilation,
        geometry.is_transposed, geometry.output_padding, geometry.groups, [False, True, False],
    )  # fmt: skip
    assert isinstance(gradient, Tensor)
    return gradient.flatten()
