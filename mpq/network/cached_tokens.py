"""Keys and values of a sequence as queries see them: as they came, and as a cache holds them."""

from dataclasses import dataclass
from typing import Final, Self, final

import torch
from torch import Tensor

from mpq.network.kept_tokens import KeptTokens
from mpq.network.operand import Operand
from mpq.network.rotation import Rotation

_CACHED: Final = "_mpq_cached"
"""Attribute of keys and values that a cache of ours returns: what is in it."""


@final
@dataclass(frozen=True, eq=False)
class Cached:
    """Keys, or values, of a sequence of ``T`` tokens.

    A query sees a token as it came where that is kept for it, else as the cache holds it. Tokens of
    either kind that no query sees may be left out.

    Args:
        kept: ``[N, H, F, D]`` as they came.
        kept_at: ``[F]`` their places in the sequence.
        held: ``[N, H, R, D]`` as the cache holds them.
        held_at: ``[R]`` their places.
        length: ``T``.
    """

    kept: Tensor
    kept_at: Tensor
    held: Tensor
    held_at: Tensor
    length: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        operand: Operand | None,
        tokens: KeptTokens,
        rotation: Rotation | None = None,
    ) -> Self:
        """From all keys or values ``[N, H, T, D]``; without a layer they are held as they came.

        Args:
            x: Keys are rotated already.
            operand: Rounds what it reads.
            tokens: Which tokens are kept as they came.
            rotation: Of all tokens, for keys that are held before it.
        """
        at = torch.arange(x.shape[2], device=x.device)
        after = x[:, :, tokens.first :]
        turned = rotation and rotation.tokens(slice(tokens.first, None))
        held = after if operand is None else operand.of_heads(after, turned)
        # With a window every token is seen as it came by some query.
        kept = x if tokens.window else x[:, :, : tokens.first]
        return cls(kept, at[: kept.shape[2]], held, at[tokens.first :], x.shape[2])

    @property
    def all(self) -> Tensor:
        """``[N, H, F + R, D]``."""
        return torch.cat([self.kept, self.held], dim=2) if len(self.kept_at) else self.held


def mask_of(cached: Cached, num_queries: int, tokens: KeptTokens, mask: Tensor | None) -> Tensor:
    """``[N, 1, Q, F + R]``: who sees which of ``Cached.all``, each token once.

    Args:
        cached: Keys.
        num_queries: ``Q``, the last ones of the sequence.
        tokens: Which tokens are kept for a query.
        mask: ``[N, 1, Q, T]``, true where a query sees a token, or what is added to scores; unset:
            a query sees all tokens up to its own.
    """
    device = cached.held.device
    queries = torch.arange(cached.length - num_queries, cached.length, device=device)[:, None]
    if mask is None:
        mask = (torch.arange(cached.length, device=device) <= queries)[None, None]
    is_near = queries - cached.kept_at < tokens.window
    sees_kept = is_near | (cached.kept_at < tokens.first)
    sees_held = queries - cached.held_at >= tokens.window
    sees = torch.cat([sees_kept, sees_held], dim=1)
    mask = torch.cat([mask[..., cached.kept_at], mask[..., cached.held_at]], dim=-1)
    if mask.dtype == torch.bool:
        return mask & sees
    return mask.masked_fill(~sees, torch.finfo(mask.dtype).min)


def told(x: Tensor, cached: Cached) -> Tensor:
    """The tensor, which says what it is made of: ``cached_by`` reads it."""
    vars(x)[_CACHED] = cached
    return x


def cached_by(x: Tensor) -> Cached | None:
    """What a cache of ours says of the keys or values that it returned; ``None`` of any other."""
    found: Cached | None = vars(x).get(_CACHED)
    return found
