"""Torch functions that read a parameter as a layer's weight, brought into the form of a layer."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.contractions import einsum
from mpq.network.weight_use import Block, Locate, Use, WeightCall, product


def weight_call(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], locate: Locate
) -> WeightCall | None:
    """The call as that of layers; ``None`` if it is none, or its operands are both weights."""
    reader = READERS.get(func)
    if reader is None:
        return None
    try:
        bound = inspect.signature(reader).bind(locate, *args, **kwargs)
    except TypeError:  # an option that no layer has, as `out`
        return None
    found: WeightCall | None = reader(*bound.args, **bound.kwargs)
    return found


def _linear(
    locate: Locate,
    input: Any,  # noqa: A002 - torch's name, as in all that follow
    weight: Any,
    bias: Any = None,
) -> WeightCall | None:
    block = None if locate(input) else locate(weight)
    if block is None or weight.ndim != 2:
        return None
    return product(block, input, weight.mT, lambda y: y if bias is None else y + bias)


def _matmul(locate: Locate, input: Any, other: Any) -> WeightCall | None:  # noqa: A002
    return _either(locate, input, other)


def _mm(locate: Locate, input: Any, mat2: Any) -> WeightCall | None:  # noqa: A002
    return _either(locate, input, mat2)


def _mv(locate: Locate, input: Any, vec: Any) -> WeightCall | None:  # noqa: A002
    return _either(locate, input, vec)


def _rmatmul(locate: Locate, right: Any, left: Any) -> WeightCall | None:
    return _either(locate, left, right)


def _addmm(
    locate: Locate,
    input: Any,  # noqa: A002
    mat1: Any,
    mat2: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> WeightCall | None:
    return _either(locate, mat1, mat2, lambda y: torch.add(beta * input, y, alpha=alpha))


def _baddbmm(
    locate: Locate,
    input: Any,  # noqa: A002
    batch1: Any,
    batch2: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> WeightCall | None:
    return _addmm(locate, input, batch1, batch2, beta=beta, alpha=alpha)


def _either(
    locate: Locate, left: Any, right: Any, finish: Callable[[Tensor], Tensor] = lambda y: y
) -> WeightCall | None:
    """A product in which one operand is the weight."""
    first, second = locate(left), locate(right)
    if first and second:
        return None
    if second:
        return product(second, left, right, finish)
    if first is None or left.ndim < 2 or not isinstance(right, Tensor):
        return None
    # W x = (x' W')'
    if right.ndim == 1:
        return product(first, right, left.mT, finish)
    return product(first, right.mT, left.mT, lambda y: finish(y.mT))


def _convolution(axes: int) -> Callable[..., WeightCall | None]:
    def read(
        locate: Locate,
        input: Any,  # noqa: A002
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> WeightCall | None:
        block = None if locate(input) else locate(weight)
        if block is None or not _is_whole(block):
            return None
        options = (_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)

        def compute(layers: Sequence[nn.Module]) -> Tensor:
            _set_geometry(layers[0], *options)
            y: Tensor = layers[0](input)
            return y if bias is None else y + bias.reshape(-1, *[1] * axes)

        use = Use(f"conv{axes}d", tuple(weight.shape))
        return WeightCall(block.parameter, use, range(1), compute)

    return read


def _transposed_convolution(axes: int) -> Callable[..., WeightCall | None]:
    def read(
        locate: Locate,
        input: Any,  # noqa: A002
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> WeightCall | None:
        block = None if locate(input) else locate(weight)
        # Its groups say which of the weight's numbers share a scale: the layer is made with 1.
        if block is None or not _is_whole(block) or groups != 1:
            return None
        options = (_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)

        def compute(layers: Sequence[nn.Module]) -> Tensor:
            layer: Any = layers[0]
            layer.stride, layer.padding, layer.dilation, layer.groups = options
            layer.output_padding = _each(output_padding, axes)
            y: Tensor = layer(input)
            return y if bias is None else y + bias.reshape(-1, *[1] * axes)

        use = Use(f"conv_transpose{axes}d", tuple(weight.shape))
        return WeightCall(block.parameter, use, range(1), compute)

    return read


def _each(value: Any, axes: int) -> Any:
    if isinstance(value, str):
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _set_geometry(layer: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    # The call and not the module says how it slides.
    layer.stride, layer.padding, layer.dilation, layer.groups = stride, padding, dilation, groups
    layer.in_channels = layer.weight.shape[1] * groups


def _embedding(
    locate: Locate,
    input: Any,  # noqa: A002
    weight: Any,
    padding_idx: int | None = None,  # noqa: ARG001 - it is of training alone, as the next but one
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,  # noqa: ARG001
    sparse: bool = False,  # noqa: ARG001
) -> WeightCall | None:
    block = locate(weight)
    if block is None or max_norm is not None or weight.ndim != 2 or not _is_whole(block):
        return None
    use = Use("embedding", tuple(weight.shape))
    return WeightCall(block.parameter, use, range(1), lambda layers: layers[0](input))


def _is_whole(block: Block) -> bool:
    is_all = block.offset == 0 and block.tensor.numel() == block.parameter.numel()
    return is_all and block.tensor.is_contiguous()


READERS: Final[dict[Any, Callable[..., WeightCall | None]]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _rmatmul,
    torch.inner: _linear,
    Tensor.inner: _linear,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.bmm: _mm,
    Tensor.bmm: _mm,
    torch.mv: _mv,
    Tensor.mv: _mv,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
    torch.einsum: einsum,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.conv_transpose1d: _transposed_convolution(1),
    F.conv_transpose2d: _transposed_convolution(2),
    F.conv_transpose3d: _transposed_convolution(3),
    F.embedding: _embedding,
}
