"""Parameters as the weights of layers: how they are cut into matrices, and products with these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn

from mpq.network.gathered import Gathered, routed


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

    def __str__(self) -> str:
        # Of a square matrix nothing else tells the two apart.
        how = " (transposed)" if self.is_transposed else ""
        return f"{self.kind} of {'x'.join(map(str, self.shape))}{how}"

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
    """A tensor that lies in a parameter's memory, so many numbers behind its start.

    Or in copies of its parts, where ``gathered`` tells which; ``offset`` is then in these.
    """

    parameter: Tensor
    tensor: Tensor
    offset: int
    gathered: Gathered | None = None


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


def matrices(block: Block, view: Tensor, width: int | None = None) -> tuple[Use, range] | None:
    """How a view ``[I, O]`` or ``[E, I, O]`` of a parameter is layers, and which of them it is.

    ``width`` is the length of the rows in memory, if that is not the parameter's last axis.
    """
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
    use = Use("linear", (view.shape[-1], view.shape[-2]), is_transposed)
    size = prod(use.shape)
    if not use.parts(block.parameter) or block.offset % size:
        return None
    first, count = block.offset // size, 1 if view.ndim == 2 else len(view)
    return use, range(first, first + count)


def product(
    block: Block | None, x: Any, view: Tensor, finish: Callable[[Tensor], Tensor] = lambda y: y
) -> WeightCall | None:
    """``x @ view``, where the view of a weight is ``[I, O]`` or ``[E, I, O]``."""
    if block is None or not isinstance(x, Tensor) or not x.ndim:
        return None
    if block.gathered is not None:
        return gathered_product(block.gathered, x, view, block.parameter.shape[-1], finish)
    if view.ndim not in (2, 3):
        return None
    found = matrices(block, view)
    if found is None:
        return None

    def compute(layers: Sequence[nn.Module]) -> Tensor:
        return finish(single(layers[0], x) if view.ndim == 2 else _batched(layers, x))

    return WeightCall(block.parameter, *found, compute)


def gathered_product(
    copies: Gathered,
    x: Tensor,
    view: Tensor,
    width: int,
    finish: Callable[[Tensor], Tensor] = lambda y: y,
) -> WeightCall | None:
    """``x @ view``, where the view of copies is ``[..., I, O]``, with rows of ``width`` numbers."""
    inputs, outputs = view.shape[-2:]
    if not view.numel():
        return None
    one = view[(0,) * (view.ndim - 2)]
    if one.mT.is_contiguous() and inputs == width:
        is_transposed = False
    elif one.is_contiguous() and outputs == width:
        is_transposed = True
    else:
        return None
    use = Use("linear", (outputs, inputs), is_transposed)
    chosen = copies.matrices(view, inputs * outputs)
    if chosen is None or not use.parts(copies.parameter):
        return None

    def compute(layers: Sequence[nn.Module]) -> Tensor:
        return finish(routed(layers, chosen, x, outputs))

    return WeightCall(copies.parameter, use, range(use.parts(copies.parameter)), compute)


def single(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of rows, or of one."""
    # A layer reads rows: hooks take the last axis for features and the first one for examples.
    y: Tensor = layer(x[None])[0] if x.ndim == 1 else layer(x)
    return y


def _batched(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """As ``matmul`` of ``[..., E, T, I]`` and ``[E, I, O]``, with its broadcasting."""
    if x.ndim < 3:
        return torch.stack([single(layer, x) for layer in layers])
    if len(layers) == 1:
        y: Tensor = layers[0](x)
        return y
    parts = x.unbind(-3) if x.shape[-3] > 1 else [x.squeeze(-3)] * len(layers)
    return torch.stack([layer(x) for layer, x in zip(layers, parts, strict=True)], dim=-3)
