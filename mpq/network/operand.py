"""Tensors that meet between layers, or that attention keeps, as layers without weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, final

import torch
from torch import Tensor, nn

from mpq.network.layer import CACHES, KEYS, UNROTATED_KEYS, VALUES
from mpq.network.rotation import Rotation

REPEATED: Final[ContextVar[float]] = ContextVar("REPEATED", default=1.0)
"""How many times as many keys a product has as there are tokens, some as they came and as held."""


class OperandShape(Protocol):
    """What is known of a layer without weights."""

    @property
    def kind(self) -> str:
        """One of ``WEIGHTLESS``."""

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """Of the layer's weight, which has no numbers."""

    @property
    def query_heads(self) -> int:
        """Heads of the queries that read a cache; 0: not known, or it is none."""

    @property
    def most_tokens(self) -> int | None:
        """That are kept in a cache; ``None``: all, or it is none."""


@final
@dataclass(frozen=True)
class CacheShape:
    """What an attention module keeps of one token, as keys or as values.

    Args:
        kind: One of ``CACHES``.
        num_heads: Heads that keys and values have, ``H``.
        head_size: Numbers of one head, ``D``.
        query_heads: Heads of the queries that read them; 0: not known.
        most_tokens: That are kept: those of a sliding window; ``None``: all.
    """

    kind: str
    num_heads: int
    head_size: int
    query_heads: int = 0
    most_tokens: int | None = None

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """Of the layer's weight, which has no numbers."""
        return self.num_heads, self.head_size, 0


@final
@dataclass(frozen=True)
class CallShape:
    """Which call of a module an operand belongs to.

    Args:
        kind: One of ``OPERANDS``: what is called.
        place: Which of the module's calls of this kind, from 1 on; all turns of a loop are one.
        count: How many of them there are whenever the module is called.
    """

    kind: str
    place: int
    count: int
    query_heads: int = 0
    most_tokens: None = None

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """Of the layer's weight, which has no numbers."""
        return self.place, self.count, 0

    @classmethod
    def of(cls, kind: str, weight_shape: Sequence[int]) -> Self:
        """From the kind and the shape of the layer's weight."""
        place, count, _ = weight_shape
        return cls(kind, place, count)


@final
class Operand(nn.Module):
    """Hands on a tensor, as it came: an operand, or keys or values that a cache holds.

    Hooks round and price what it reads as they do for any layer. A cache's is called with
    ``[N, T, H D]``, heads side by side. Its weight has no numbers, takes no bytes, and is in no
    state dict.

    Args:
        shape: Where the tensor is.
        like: Has the device and the dtype of the tensor.
    """

    def __init__(self, shape: OperandShape, like: Tensor) -> None:
        super().__init__()
        self.kind, self.most_tokens = shape.kind, shape.most_tokens
        self.query_heads = shape.query_heads
        self.macs = 0
        """Multiply-accumulate operations of the product that the last call was for: its share."""
        weight = torch.empty(shape.weight_shape, dtype=like.dtype, device=like.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, as it came."""
        return x

    @property
    def is_unrotated(self) -> bool:
        """Whether it holds keys as they were before positions were rotated into them."""
        return self.kind == UNROTATED_KEYS

    def of_heads(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """The same for ``[N, H, T, D]``, as attention has it.

        Args:
            x: Keys are rotated already.
            rotation: Of these ``T`` tokens, for keys that are held before it.
        """
        if not x.shape[2]:
            return x
        if rotation is not None:
            return rotation.done(self.of_heads(rotation.undone(x)))
        joined: Tensor = self(x.transpose(1, 2).flatten(2))
        return joined.reshape(len(x), -1, x.shape[1], x.shape[3]).transpose(1, 2)

    def _save_to_state_dict(self, *_: Any) -> None:
        """Nothing: the user's network knows no such parameter."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing either."""


def operands_of(attention: nn.Module) -> tuple[Operand | None, Operand | None]:
    """The layers of an attention's keys and of its values; ``None`` where it has none."""
    found = {kind: attention._modules.get(kind) for kind in CACHES}
    parts = {kind: part for kind, part in found.items() if isinstance(part, Operand)}
    return parts.get(KEYS) or parts.get(UNROTATED_KEYS), parts.get(VALUES)


@contextmanager
def repeated(times: float) -> Iterator[None]:
    """Within this block products have so many times as many keys as there are tokens."""
    before = REPEATED.set(times)
    try:
        yield
    finally:
        REPEATED.reset(before)
