"""Torch functions between layers whose operands an integer NPU rounds, and how they compute.

These are products of two tensors, additions, multiplications and concatenations. A product is
``matmul`` and its relatives, ``einsum`` of two operands, and attention, which becomes its two
products here.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F


class Hand(Protocol):
    """Hands an operand on to whoever rounds it."""

    def __call__(self, role: str, x: Tensor, macs: int = 0) -> Tensor:
        """The tensor in that role, rounded; ``macs`` are those of the product that it is for."""


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One call of such a function.

    Args:
        kind: One of ``mpq.network.layer.OPERANDS``.
        operands: By role, as far as they are there before the call.
        compute: The result, from operands that went through the hand.
    """

    kind: str
    operands: dict[str, Tensor]
    compute: Callable[[Hand], Tensor]


def call_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Call | None:
    """The call as that of an operation; ``None`` if it is none, or not of two tensors."""
    reader = _READERS.get(func)
    if reader is None:
        return None
    try:
        bound = _signature(reader).bind(*args, **kwargs)
    except TypeError:  # an option that is not covered, as `out`
        return None
    found: Call | None = reader(*bound.args, **bound.kwargs)
    return found


@cache
def _signature(reader: Callable[..., Call | None]) -> inspect.Signature:
    return inspect.signature(reader)


def is_numbers(x: Any) -> bool:
    """Whether it is a tensor of floating-point numbers, and no scalar."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0


def _of_two(
    kind: str, left: Any, right: Any, compute: Callable[[Tensor, Tensor], Tensor], macs: int = 0
) -> Call | None:
    if not (is_numbers(left) and is_numbers(right)):
        return None

    def computed(hand: Hand) -> Tensor:
        return compute(hand("left", left, macs), hand("right", right, macs))

    return Call(kind, {"left": left, "right": right}, computed)


def _in_place(
    kind: str,
    left: Any,
    right: Any,
    compute: Callable[[Tensor, Tensor], Tensor],
    write: Callable[[Tensor, Tensor], Tensor],
) -> Call | None:
    """Of ``x += y``: whoever has ``x`` sees the result."""
    if not (is_numbers(left) and is_numbers(right)):
        return None

    def computed(hand: Hand) -> Tensor:
        # Who waits for gradients keeps what was handed on, which is about to be overwritten.
        given = left.clone() if torch.is_grad_enabled() else left
        x, y = hand("left", given), hand("right", right)
        return write(left, y) if x is left else left.copy_(compute(x, y))

    return Call(kind, {"left": left, "right": right}, computed)


def _matmul(input: Any, other: Any) -> Call | None:  # noqa: A002 - torch's name, as in all that follow
    if not (is_numbers(input) and is_numbers(other)):
        return None
    columns = other.shape[-1] if other.ndim > 1 else 1
    # A broadcast operand is multiplied once for every matrix of the other.
    rows = torch.broadcast_shapes(input.shape[:-2], other.shape[:-2]).numel()
    inner = input.shape[-2:].numel()
    return _of_two("matmul", input, other, torch.matmul, rows * inner * columns)


def _mm(input: Any, mat2: Any) -> Call | None:  # noqa: A002
    return _matmul(input, mat2)


def _rmatmul(right: Any, left: Any) -> Call | None:
    return _matmul(left, right)


def _addmm(
    input: Any,  # noqa: A002
    mat1: Any,
    mat2: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Call | None:
    product = _matmul(mat1, mat2)
    if product is None:
        return None

    def computed(hand: Hand) -> Tensor:
        # As torch has it: numbers that count nothing may be infinite.
        found = product.compute(hand) * alpha
        return found + beta * input if beta else found

    return Call(product.kind, product.operands, computed)


def _baddbmm(
    input: Any,  # noqa: A002
    batch1: Any,
    batch2: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Call | None:
    return _addmm(input, batch1, batch2, beta=beta, alpha=alpha)


def _einsum(equation: Any, *operands: Any) -> Call | None:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if len(operands) != 2 or not isinstance(equation, str) or not all(map(is_numbers, operands)):
        return None
    left, right = operands

    def compute(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum(equation, x, y)

    return _of_two("matmul", left, right, compute, _einsum_macs(equation, left, right))


def _einsum_macs(equation: str, left: Tensor, right: Tensor) -> int:
    """One for every combination of the letters."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, x in zip(terms, (left, right), strict=True):
        first, dots, last = term.partition("...")
        inside = x.ndim - len(first) - len(last) if dots else 0
        # Aligned at the last of them, as torch does it.
        letters = [*first, *(f"...{i}" for i in range(inside, 0, -1)), *last]
        for letter, size in zip(letters, x.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return torch.Size(sizes.values()).numel()


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call | None:
    """``softmax(Q K^T s + M) V``, as torch documents it."""
    if not (is_numbers(query) and is_numbers(key) and is_numbers(value)):
        return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    macs = query.numel() * key.shape[-2], query.shape[:-1].numel() * value.shape[-2:].numel()

    def computed(hand: Hand) -> Tensor:
        q, k = hand("query", query, macs[0]), hand("key", key, macs[0])
        k = _repeated(k, query) if enable_gqa else k
        scores = q @ k.mT * factor  # [..., T, S]
        mask = _causal(scores) if is_causal else attn_mask
        if mask is not None:
            is_bool = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, -torch.inf) if is_bool else scores + mask
        weights = scores.softmax(dim=-1)
        # A query that sees nothing: torch gives 0.
        weights = torch.where((scores == -torch.inf).all(dim=-1, keepdim=True), 0.0, weights)
        weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
        weights, v = hand("probabilities", weights, macs[1]), hand("values", value, macs[1])
        return weights @ (_repeated(v, query) if enable_gqa else v)

    return Call("attention", {"query": query, "key": key, "values": value}, computed)


def _repeated(x: Tensor, query: Tensor) -> Tensor:
    """Heads of keys or values, as many as there are of queries."""
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3)


def _causal(scores: Tensor) -> Tensor:
    """``[T, S]`` true where a query sees a key: from the first of either on."""
    ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return ones.tril()


def _add(input: Any, other: Any, *, alpha: Any = 1) -> Call | None:  # noqa: A002
    return _of_two("add", input, other, lambda x, y: torch.add(x, y, alpha=alpha))


def _sub(input: Any, other: Any, *, alpha: Any = 1) -> Call | None:  # noqa: A002
    return _of_two("add", input, other, lambda x, y: torch.sub(x, y, alpha=alpha))


def _rsub(right: Any, left: Any) -> Call | None:
    return _sub(left, right)


def _radd(right: Any, left: Any) -> Call | None:
    return _add(left, right)


def _add_to(input: Any, other: Any, *, alpha: Any = 1) -> Call | None:  # noqa: A002
    return _in_place(
        "add",
        input,
        other,
        lambda x, y: torch.add(x, y, alpha=alpha),
        lambda x, y: x.add_(y, alpha=alpha),
    )


def _sub_from(input: Any, other: Any, *, alpha: Any = 1) -> Call | None:  # noqa: A002
    return _add_to(input, other, alpha=-alpha)


def _mul(input: Any, other: Any) -> Call | None:  # noqa: A002
    return _of_two("mul", input, other, torch.mul)


def _mul_to(input: Any, other: Any) -> Call | None:  # noqa: A002
    return _in_place("mul", input, other, torch.mul, Tensor.mul_)


def _cat(tensors: Any, dim: int = 0) -> Call | None:
    """What is joined has one scale, which is that of all its parts."""
    if not isinstance(tensors, list | tuple) or not all(map(is_numbers, tensors)):
        return None
    joined = [x for x in tensors if x.numel()]
    if len(joined) < 2:
        return None
    operands = {f"part_{i}": x for i, x in enumerate(joined, start=1)}
    return Call("cat", operands, lambda hand: hand("whole", torch.cat(tensors, dim)))


_READERS: Final[dict[Any, Callable[..., Call | None]]] = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul), _matmul),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _mm),
    Tensor.__rmatmul__: _rmatmul,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _baddbmm),
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _add),
    Tensor.__radd__: _radd,
    **dict.fromkeys((torch.sub, torch.subtract, Tensor.sub, Tensor.subtract), _sub),
    Tensor.__sub__: _sub,
    Tensor.__rsub__: _rsub,
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _add_to),
    **dict.fromkeys((Tensor.sub_, Tensor.subtract_, Tensor.__isub__), _sub_from),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), _mul),
    **dict.fromkeys((Tensor.__mul__, Tensor.__rmul__), _mul),
    **dict.fromkeys((Tensor.mul_, Tensor.multiply_, Tensor.__imul__), _mul_to),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
}
"""Functions of torch's and how each is read."""
