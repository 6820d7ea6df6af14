"""Proxies as formulas: a tree of operations over weights, gradients, inputs and curvature."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self, final

import torch
from torch import Tensor

from mpq._support.json_object import quoted
from mpq.errors import InputError, UnknownNameError

MOST_NODES: Final = 64
"""Of a formula that is read; evolution keeps to fewer."""
_LONGEST: Final = 1000  # characters

INPUTS: Final[Mapping[str, str]] = {
    "w": "the weight",
    "g": "its gradient of the mean loss",
    "a": "root mean square of what each weight is multiplied with",
    "h": "mean square of each example's gradient, the diagonal of its curvature",
}
"""What a formula reads of a layer, ``[O, K]`` each, and what it is."""


def _normalized(x: Tensor) -> Tensor:
    spread = x.std(correction=0)
    return (x - x.mean()) / spread if float(spread) > 0 else torch.zeros_like(x)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    # By 0 it is 0: a weight without a gradient counts nothing, instead of all.
    return torch.where(y == 0, 0.0, x / torch.where(y == 0, 1.0, y))


ELEMENTWISE: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": lambda x: x.abs().sqrt(),
    "log": lambda x: x.abs().log1p(),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "normalize": _normalized,
}
"""Operations on every number; ``sqrt`` and ``log`` are of its absolute value, the latter plus 1."""
AGGREGATES: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "norm": lambda x: x.square().sum().sqrt(),
    "max": torch.max,
    "std": lambda x: x.std(correction=0),
}
"""Operations that make one number of a tensor."""
BINARY: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": _quotient,
}
"""Operations on two tensors, or on a tensor and a number."""
UNARY: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {**ELEMENTWISE, **AGGREGATES}
_SIGNS: Final[Mapping[type[ast.operator], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


@final
@dataclass(frozen=True)
class Formula:
    """A proxy's expression, such as ``sum(abs(g*w))``.

    Its value of a layer is one number, whose size is how much the layer matters.

    Args:
        name: Of an input (``INPUTS``) or of an operation (``UNARY``, ``BINARY``).
        parts: What an operation is of: one or two formulas; of an input none.

    Raises:
        UnknownNameError: If there is no such input or operation.
        InputError: If an operation has another number of parts.
    """

    name: str
    parts: tuple["Formula", ...] = ()

    def __post_init__(self) -> None:
        takes = {**dict.fromkeys(INPUTS, 0), **dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2)}
        if self.name not in takes:
            raise UnknownNameError("input or operation of a formula", self.name, takes)
        if len(self.parts) != takes[self.name]:
            raise InputError(
                f"{self.name} in a formula is of {takes[self.name]} parts; got {len(self.parts)}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From its text, in which ``*`` and ``/`` go before ``+`` and ``-``.

        Raises:
            InputError: If it is no formula, is longer than ``MOST_NODES``, or has many numbers.
        """
        tree = _tree(text[:_LONGEST])
        found = None if tree is None else cls._of(tree)
        if found is None or len(text) > _LONGEST or len(list(found.nodes())) > MOST_NODES:
            raise InputError(
                f"{quoted(text)} is no formula of at most {MOST_NODES} inputs and operations: "
                "write one like sum(abs(g*w))"
            )
        if not found.is_number:
            raise InputError(
                f"the formula {text} has a number for every weight; a proxy has one for the "
                f"layer: put it into {', '.join(AGGREGATES)}"
            )
        return found

    @classmethod
    def _of(cls, node: ast.expr) -> Self | None:
        """``None``: no formula."""
        parts: list[Self | None]
        if isinstance(node, ast.Name):
            return cls(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
            name, parts = _SIGNS[type(node.op)], [cls._of(node.left), cls._of(node.right)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            name, parts = node.func.id, [cls._of(argument) for argument in node.args]
        else:
            return None
        whole = tuple(part for part in parts if part is not None)
        return cls(name, whole) if len(whole) == len(parts) else None

    def __str__(self) -> str:
        if self.name in INPUTS:
            return self.name
        if self.name in UNARY:
            return f"{self.name}({self.parts[0]})"
        first, second = (f"({x})" if x.name in BINARY else str(x) for x in self.parts)
        return f"{first}{self.name}{second}"

    def nodes(self) -> Iterator["Formula"]:
        """Itself and all that it is made of."""
        yield self
        for part in self.parts:
            yield from part.nodes()

    @property
    def inputs(self) -> frozenset[str]:
        """Names of what it reads."""
        return frozenset(node.name for node in self.nodes() if node.name in INPUTS)

    @property
    def is_number(self) -> bool:
        """Whether it has one value, and not one for every weight."""
        if self.name in INPUTS:
            return False
        return self.name in AGGREGATES or all(part.is_number for part in self.parts)

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What it is of a layer.

        Args:
            inputs: Name to ``[O, K]``, of what it reads.
        """
        values = [part.value(inputs) for part in self.parts]
        if not values:
            return inputs[self.name]
        if len(values) == 1:
            return UNARY[self.name](values[0])
        return BINARY[self.name](*values)

    def importance(self, inputs: Mapping[str, Tensor]) -> float:
        """The size of its number, in float64; may be infinite or no number."""
        # Squares of small gradients are 0 in float32.
        return abs(float(self.value({name: x.double() for name, x in inputs.items()})))


def _tree(text: str) -> ast.expr | None:
    """Python's syntax tree; ``None``: there is none."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
