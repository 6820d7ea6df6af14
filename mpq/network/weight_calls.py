"""Torch functions that read a parameter as a layer's weight, brought into the form of a layer."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
@dataclass(frozen=True)
class Use:
    """How a parameter is used: cut into equal layers of one kind.

    Args:
        kind: Kind of the layers.
        shape: The shape of one layer's weight, as torch's layer of that kind has it.
        is_transposed: Whether the parameter holds every such matrix as ``[I, O]``.
    """

    kind: str
    shape: tuple[int, ...]
    is_transposed: bool = False

    def parts(self, parameter: Tensor) -> int:
        """How many layers a parameter is; one of another size is none."""
        size = prod(self.shape)
        return 0 if not size or parameter.numel() % size else parameter.numel() // size

    def cut(self, parameter: Tensor) -> list[Tensor]:
        """The layers' weights, which are views of a contiguous parameter."""
        stored = self.shape[::-1] if self.is_transposed else self.shape
        parts = parameter.reshape(-1, *stored).unbind(0)
        return [part.t() if self.is_transposed else part for part in parts]

    def join(self, parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Inverse of ``cut``."""
        stored = [part.t() if self.is_transposed else part for part in parts]
        return torch.stack(stored).reshape(tuple(shape))


@final
@dataclass(frozen=True, eq=False)
class Block:
    """A tensor that lies in a parameter's memory, so many numbers behind its start."""

    parameter: Tensor
    tensor: Tensor
    offset: int


@final
@dataclass(frozen=True, eq=False)
class WeightCall:
    """A function's call as the call of layers.

    Args:
        parameter: The parameter that is read.
        use: How.
        layers: Which of its layers, by their numbers.
        compute: What the function returns, from these layers.
    """

    parameter: Tensor
    use: Use
    layers: range
    compute: Callable[[Sequence[nn.Module]], Tensor]


Locate = Callable[[Any], Block | None]


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


def _product(
    block: Block | None,
    x: Any,
    view: Tensor,
    finish: Callable[[Tensor], Tensor] = lambda y: y,
    width: int | None = None,
) -> WeightCall | None:
    """``x @ view``, where the view of a weight is ``[I, O]`` or ``[E, I, O]``.

    ``width`` is the length of the rows in memory, if that is not the parameter's last axis.
    """
    if block is None or not isinstance(x, Tensor) or not x.ndim or view.ndim not in (2, 3):
        return None
    if width is None and block.parameter.ndim == 1:  # viewed as a matrix: no rows of its own
        width = view.shape[-2 if view.mT.is_contiguous() else -1]
    width = width or block.parameter.shape[-1]
    # Of a matrix with one row, both ways are contiguous: the parameter's own last axis tells.
    if view.mT.is_contiguous() and view.shape[-2] == width:
        is_transposed = False
    elif view.is_contiguous() and view.shape[-1] == width:
        is_transposed = True
    else:
        return None
    shape = (view.shape[-1], view.shape[-2])
    use = Use("linear", shape, is_transposed)
    size = prod(shape)
    if not use.parts(block.parameter) or block.offset % size:
        return None
    first, count = block.offset // size, 1 if view.ndim == 2 else len(view)

    def compute(layers: Sequence[nn.Module]) -> Tensor:
        return finish(_single(layers[0], x) if view.ndim == 2 else _batched(layers, x))

    return WeightCall(block.parameter, use, range(first, first + count), compute)


def _single(layer: nn.Module, x: Tensor) -> Tensor:
    # A layer reads rows: hooks take the last axis for features and the first one for examples.
    y: Tensor = layer(x[None])[0] if x.ndim == 1 else layer(x)
    return y


def _batched(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """As ``matmul`` of ``[..., E, T, I]`` and ``[E, I, O]``, with its broadcasting."""
    if x.ndim < 3:
        return torch.stack([_single(layer, x) for layer in layers])
    if len(layers) == 1:
        y: Tensor = layers[0](x)
        return y
    parts = x.unbind(-3) if x.shape[-3] > 1 else [x.squeeze(-3)] * len(layers)
    return torch.stack([layer(x) for layer, x in zip(layers, parts, strict=True)], dim=-3)


def _linear(
    locate: Locate,
    input: Any,  # noqa: A002 - torch's name, as in all that follow
    weight: Any,
    bias: Any = None,
) -> WeightCall | None:
    block = None if locate(input) else locate(weight)
    if block is None or weight.ndim != 2:
        return None
    return _product(block, input, weight.mT, lambda y: y if bias is None else y + bias)


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
    return None if locate(input) else _either(
        locate, mat1, mat2, lambda y: torch.add(beta * input, y, alpha=alpha)
    )  # fmt: skip


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
        return _product(second, left, right, finish)
    if first is None or left.ndim < 2 or not isinstance(right, Tensor):
        return None
    # W x = (x' W')'
    if right.ndim == 1:
        return _product(first, right, left.mT, finish)
    return _product(first, right.mT, left.mT, lambda y: finish(y.mT))


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


def _einsum(locate: Locate, equation: Any, *operands: Any) -> WeightCall | None:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    found = [locate(operand) for operand in operands]
    if not arrow or len(terms) != 2 or (found[0] is None) == (found[1] is None):
        return None
    place = 0 if found[0] is not None else 1
    return _contraction(
        found[place], operands[1 - place], terms[place], terms[1 - place], output
    )  # fmt: skip


def _contraction(
    block: Block | None, x: Any, of_weight: str, of_x: str, output: str
) -> WeightCall | None:
    """``einsum`` as a product, where the weight's axes are batch, and inputs and outputs."""
    assert block is not None
    if not isinstance(x, Tensor):
        return None
    if "." in of_x + of_weight:  # the ellipsis as letters, if it is of the activation alone
        spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in of_x + of_weight + output]
        letters = "".join(spare[: x.ndim - len(of_x.replace("...", ""))])
        of_x, output = of_x.replace("...", letters), output.replace("...", letters)
    batch = "".join(c for c in of_weight if c in of_x and c in output)
    read = "".join(c for c in of_weight if c in of_x and c not in output)
    written = "".join(c for c in of_weight if c not in of_x and c in output)
    rest = "".join(c for c in of_x if c not in of_weight)
    is_transposed = of_weight == batch + read + written
    is_plain = is_transposed or of_weight == batch + written + read
    labels = [of_x, of_weight, output]
    if (
        not (is_plain and read and written)
        or len(batch) > 1
        or any(len(set(label)) < len(label) or "." in label for label in labels)
        or sorted(output) != sorted(batch + rest + written)
    ):
        return None
    sizes = dict(zip(of_weight, block.tensor.shape, strict=True)) | dict(
        zip(of_x, x.shape, strict=True)
    )
    counts = [prod(sizes[c] for c in group) for group in (read, written)]
    # Contiguous as it was, or no view: then it lies in no parameter, and is no weight.
    lead = [sizes[c] for c in batch]
    if not block.tensor.is_contiguous():
        return None
    view = block.tensor.view(*lead, *(counts if is_transposed else counts[::-1]))
    view = view if is_transposed else view.mT
    # [batch, rest..., read]: rows stay apart, as examples are found by the first axis.
    rows = x.permute([of_x.index(c) for c in batch + rest + read])
    if batch:
        rows = rows.reshape(sizes[batch], -1, counts[0])
    else:
        rows = rows.reshape(*[sizes[c] for c in rest], counts[0])

    def finish(y: Tensor) -> Tensor:
        order = batch + rest + written
        return y.reshape([sizes[c] for c in order]).permute([order.index(c) for c in output])

    return _product(block, rows, view, finish, counts[1] if is_transposed else counts[0])


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
    torch.einsum: _einsum,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.conv_transpose1d: _transposed_convolution(1),
    F.conv_transpose2d: _transposed_convolution(2),
    F.conv_transpose3d: _transposed_convolution(3),
    F.embedding: _embedding,
}
