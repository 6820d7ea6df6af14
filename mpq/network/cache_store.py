"""What a cache of one attention stores while tokens come: some as they came, the others rounded."""

from typing import final

import torch
from torch import Tensor

from mpq.network.cached_tokens import Cached
from mpq.network.kept_tokens import KeptTokens
from mpq.network.operand import Operand
from mpq.network.rotation import Rotation


@final
class CacheStore:
    """Keys, or values: every token is rounded once, when no query sees it as it came any more.

    Args:
        operand: Rounds what it reads; ``None``: nothing is rounded.
        tokens: Which tokens are kept as they came.
        like: ``[N, H, T, D]`` keys or values, of which none is stored yet.
    """

    def __init__(self, operand: Operand | None, tokens: KeptTokens, like: Tensor) -> None:
        self._operand, self._tokens = operand, tokens
        # The first ones; those that were rounded, after them; and the last ones.
        self._first = self._held = self._last = like[:, :, :0]
        self._rotation: Rotation | None = None  # of the last ones

    def __len__(self) -> int:
        """``T``, the tokens that came."""
        return sum(part.shape[2] for part in (self._first, self._held, self._last))

    def add(self, x: Tensor, rotation: Rotation | None = None) -> Cached:
        """The next tokens ``[N, H, C, D]``, whose queries are about to see all there are.

        Args:
            x: Keys are rotated already.
            rotation: Of these tokens, for keys that are held before it.
        """
        count = max(0, self._tokens.first - len(self))
        self._first = torch.cat([self._first, x[:, :, :count]], dim=2)
        last = torch.cat([self._last, x[:, :, count:]], dim=2)
        start = self._first.shape[2] + self._held.shape[2]
        # The next query sees so many before itself as they came.
        left = min(last.shape[2], max(0, self._tokens.window - 1))
        gone = last.shape[2] - left
        rounded, turned = last[:, :, :gone], self._turned(rotation, count, gone)
        if self._operand is not None:
            rounded = self._operand.of_heads(rounded, turned)
        self._held = torch.cat([self._held, rounded], dim=2)
        self._last = last[:, :, gone:]
        # Those of this call see more of them so: what has just been rounded, too.
        seen = last if self._tokens.window else last[:, :, gone:]
        device, first = x.device, self._first.shape[2]
        after = torch.arange(start, start + seen.shape[2], device=device)
        kept_at = torch.cat([torch.arange(first, device=device), after])
        held_at = torch.arange(first, first + self._held.shape[2], device=device)
        kept = torch.cat([self._first, seen], dim=2)
        return Cached(kept, kept_at, self._held, held_at, len(self))

    def _turned(self, rotation: Rotation | None, count: int, gone: int) -> Rotation | None:
        """Of the tokens that are rounded now; the last ones' is kept."""
        if rotation is None:
            return None
        after = rotation.tokens(slice(count, None))
        last = after if self._rotation is None else self._rotation.followed_by(after)
        self._rotation = last.tokens(slice(gone, None))
        return last.tokens(slice(None, gone))

    @property
    def whole(self) -> Tensor:
        """``[N, H, T, D]`` in the order of the sequence."""
        return torch.cat([self._first, self._held, self._last], dim=2)

    def reorder(self, rows: Tensor) -> None:
        """Keeps some rows of the batch, as a beam search does."""
        self._first, self._held, self._last = (
            part.index_select(0, rows.to(part.device))
            for part in (self._first, self._held, self._last)
        )
        self._rotation = self._rotation and self._rotation.rows(rows)
