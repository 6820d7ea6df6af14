"""Weights that a forward computes from parameters and buffers alone, as expressions in JSON.

An expression is evaluated where an assignment is applied, with no data at hand. It names functions
of a fixed list, so that a file can ask for nothing else.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.network.arguments import tensors_in

LONGEST: Final = 50_000
"""Characters of an expression; what repeats itself (an iteration) would grow without end."""
LARGEST: Final = 2**28
"""Numbers of a result that a file may ask for in any case."""
GROWTH: Final = 64
"""How many times the numbers of its sources it may ask for."""
_EACH: Final = (
    "abs", "absolute", "neg", "negative", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp",
    "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "sinh", "cosh",
    "sigmoid", "erf", "floor", "ceil", "round", "trunc", "clamp", "clip", "clamp_min", "clamp_max",
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "pow",
    "maximum", "minimum", "lerp", "addcmul", "addcdiv", "where", "masked_fill", "eq", "ne", "gt",
    "ge", "lt", "le", "logical_and", "logical_or", "logical_not", "relu", "softplus", "silu",
    "gelu", "elu", "leaky_relu", "hardtanh", "softmax", "log_softmax", "softsign", "logsigmoid"
)  # fmt: skip
_AXES: Final = (
    "sum", "mean", "std", "var", "amax", "amin", "prod", "norm", "logsumexp", "cumsum", "normalize",
    "vector_norm", "matrix_norm"
)  # fmt: skip
_PRODUCTS: Final = (
    "matmul", "mm", "bmm", "mv", "dot", "inner", "outer", "einsum", "addmm", "baddbmm", "tensordot",
    "linear", "kron", "multi_dot", "inv", "matrix_exp", "matrix_power"
)  # fmt: skip
_PLACES: Final = (
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "reshape", "flatten", "unflatten",
    "contiguous", "clone", "expand", "repeat", "tile", "repeat_interleave", "flip", "roll", "tril",
    "triu", "diag", "diag_embed", "block_diag", "pad", "index_select", "to", "float", "double",
    "half", "bfloat16", "bool", "__getitem__", "__radd__", "__rsub__", "__rmul__", "__rdiv__",
    "__rtruediv__", "__rpow__", "__rmatmul__", "__invert__"
)  # fmt: skip
_NAMES: Final = (*_EACH, *_AXES, *_PRODUCTS, *_PLACES)
_SPACES: Final = {"Tensor": Tensor, "torch": torch, "functional": F, "linalg": torch.linalg}


def _functions() -> dict[str, Callable[..., Any]]:
    pairs = ((f"{space}.{name}", space, name) for name in _NAMES for space in _SPACES)
    found = {key: getattr(_SPACES[space], name, None) for key, space, name in pairs}
    return {key: func for key, func in found.items() if callable(func)}


FUNCTIONS: Final = _functions()
"""Name to function: each gives the same for the same operands, and writes none of them."""
_NAME_OF: Final = {func: name for name, func in reversed(FUNCTIONS.items())}


class _UnknownError(Exception):
    """An operand that is no source, or of a kind that files do not hold."""


Operand = Callable[[Tensor], Any]
"""A tensor as an expression; ``None`` for data."""


def is_known(func: Any) -> bool:
    """Whether expressions can have this function."""
    try:
        return func in _NAME_OF
    except TypeError:  # what cannot be a key is none of them
        return False


def call_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], operand: Operand) -> Any:
    """A function's call as an expression; ``None`` if it has data, or is no known function."""
    if not is_known(func) or kwargs.get("out") is not None or kwargs.get("inplace"):
        return None
    if _is_sized_by_numbers(func, args):
        return None
    try:
        return {
            "call": _NAME_OF[func],
            "args": [_encoded(arg, operand) for arg in args],
            "kwargs": {key: _encoded(arg, operand) for key, arg in kwargs.items()},
        }
    except _UnknownError:
        return None


def _is_sized_by_numbers(func: Any, args: Sequence[Any]) -> bool:
    """Whether a result's shape depends on the numbers, so that it cannot be told beforehand."""
    others = tensors_in(args[1:])
    if func is Tensor.__getitem__:
        return any(tensor.dtype == torch.bool for tensor in others)
    return bool(others) and func in (Tensor.repeat_interleave, torch.repeat_interleave)


def view_of(base: Any, shape: Sequence[int], tensor: Tensor, offset: int) -> Any:
    """A tensor in the memory of another one, so many numbers behind its start.

    Args:
        base: What the other one is: a name or a call.
        shape: The other one's, which is contiguous.
        tensor: Lies in it.
        offset: In numbers.
    """
    if offset == 0 and tuple(tensor.shape) == tuple(shape) and tensor.is_contiguous():
        return {"of": base}
    return {"of": base, "view": [offset, list(tensor.shape), list(tensor.stride())]}


def text_of(expression: Any) -> str:
    """The one spelling of an expression."""
    return json.dumps(expression, separators=(",", ":"), sort_keys=True, allow_nan=False)


def sources_in(expression: Any) -> Iterator[str]:
    """Names of the parameters and buffers in an expression, some more than once."""
    if isinstance(expression, dict):
        if isinstance(expression.get("of"), str):
            yield expression["of"]
        for value in expression.values():
            yield from sources_in(value)
    elif isinstance(expression, list):
        for value in expression:
            yield from sources_in(value)


@torch.no_grad()
def evaluate(expression: Any, source: Callable[[str], Tensor]) -> Tensor:
    """What an expression comes out as, contiguous in the order of its memory.

    Args:
        expression: A call, as of ``call_of``.
        source: Name to parameter or buffer.

    Raises:
        ValueError: If it is none, or its result is no dense tensor.
    """
    func = FUNCTIONS.get(expression["call"])
    if func is None:
        raise ValueError(f"{expression['call']!r} is no function of computed weights")
    args = [_decoded(arg, source) for arg in expression["args"]]
    kwargs = {key: _decoded(arg, source) for key, arg in expression["kwargs"].items()}
    found = in_memory_order(func(*args, **kwargs))
    if found is None:
        raise ValueError(f"{expression['call']} gives no dense tensor")
    return found


def check_sizes(expression: Any, source: Callable[[str], Tensor]) -> None:
    """Refuses an expression whose results, on their way too, are far larger than its sources.

    Computes shapes alone, so that no memory is taken.

    Args:
        expression: As ``evaluate`` takes it.
        source: Name to parameter or buffer.

    Raises:
        ValueError: If one is.
    """
    shapes = {name: source(name).to("meta") for name in sources_in(expression)}
    most = max(LARGEST, GROWTH * sum(x.numel() for x in shapes.values()))
    for call in _calls_in(expression):
        count = evaluate(call, shapes.__getitem__).numel()
        if count > most:
            raise ValueError(f"{call['call']} would make {count} numbers, and {most} are the most")


def _calls_in(expression: Any) -> Iterator[Any]:
    """All calls in an expression, inner ones first."""
    if isinstance(expression, dict | list):
        values = expression.values() if isinstance(expression, dict) else expression
        for value in values:
            yield from _calls_in(value)
    if isinstance(expression, dict) and "call" in expression:
        yield expression


def in_memory_order(result: Any) -> Tensor | None:
    """A tensor whose axes are permuted so that it is contiguous; ``None`` where that cannot be."""
    if not isinstance(result, Tensor) or result.layout is not torch.strided:
        return None
    # Stable, so that axes of one number stay where they are.
    order = sorted(range(result.ndim), key=result.stride, reverse=True)
    found = result if result.is_contiguous() else result.permute(order)
    return found if found.is_contiguous() else None


def _encoded(value: Any, operand: Operand) -> Any:
    if isinstance(value, Tensor):
        found = operand(value)
        if found is None:
            raise _UnknownError
        return found
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else {"float": str(float(value))}
    if isinstance(value, tuple):
        return [_encoded(item, operand) for item in value]
    if isinstance(value, list):  # as an index it means something else than a tuple
        return {"list": [_encoded(item, operand) for item in value]}
    return _encoded_other(value, operand)


def _encoded_other(value: Any, operand: Operand) -> Any:
    if isinstance(value, slice):
        return {"slice": [_encoded(x, operand) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise _UnknownError


def _decoded(value: Any, source: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item, source) for item in value)
    if not isinstance(value, dict):
        return value
    if "of" in value:
        base = value["of"]
        tensor = source(base) if isinstance(base, str) else evaluate(base, source)
        return _viewed(tensor, *value["view"]) if "view" in value else tensor
    if "list" in value:
        return [_decoded(item, source) for item in value["list"]]
    if "slice" in value:
        return slice(*(_decoded(item, source) for item in value["slice"]))
    if "dtype" in value:
        dtype = getattr(torch, value["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{value['dtype']!r} is no dtype")
        return dtype
    return float(value["float"]) if "float" in value else Ellipsis


def _viewed(tensor: Tensor, offset: int, shape: list[int], stride: list[int]) -> Tensor:
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    # Of a parameter that is a part of larger memory, not more than the parameter.
    if min(offset, *shape, *stride, 0) < 0 or last >= tensor.numel():
        raise ValueError("a view that lies outside of its tensor")
    return tensor.as_strided(shape, stride, int(tensor.storage_offset()) + offset)
