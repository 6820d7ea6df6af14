"""How layers are split into parts that each get bits of their own."""

import re
from dataclasses import dataclass
from typing import Final, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.json_object import quoted
from mpq.errors import InputError

CHANNELS: Final = "channels"
BLOCKS: Final = "blocks"


@final
@dataclass(frozen=True)
class Split:
    """Parts of a layer: blocks of its output channels.

    >>> str(Split.parse("channels")), Split.parse("channels:16").size, Split.parse("blocks:4").size
    ('channels', 16, 4)

    Args:
        kind: ``channels``: consecutive ones, ``size`` at a time. ``blocks``: ``size`` blocks of as
            many channels each, the most sensitive ones together.
        size: See there; at least 1.
    """

    kind: str
    size: int = 1

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads ``channels``, ``channels:16``, ``blocks:4``; ``none`` is no split.

        Raises:
            InputError: If it is something else.
        """
        if text == "none":
            return None
        match = re.fullmatch(r"(channels|blocks)(?::([1-9][0-9]{0,5}))?", text)
        if match is None or (match[1] == BLOCKS and match[2] is None):
            raise InputError(
                f"split is none, channels, channels:16 (blocks of 16 neighbours) or blocks:4 (of "
                f"channels that are alike); got {quoted(text)}"
            )
        return cls(match[1], int(match[2] or 1))

    def __str__(self) -> str:
        return self.kind if (self.kind, self.size) == (CHANNELS, 1) else f"{self.kind}:{self.size}"

    @property
    def block(self) -> int:
        """Consecutive channels that are one part; 1 where parts need not be of neighbours."""
        return self.size if self.kind == CHANNELS else 1

    def parts(self, losses: Array) -> Columns:
        """``[O]`` the part of every channel, from 0 on.

        Args:
            losses: ``[O, B]`` what each channel loses at each candidate.
        """
        count = len(losses)
        if self.kind == CHANNELS:
            return np.arange(count) // self.size
        # By the geometric mean over candidates, of those that lose anything.
        with np.errstate(divide="ignore"):
            logs = np.log(losses)
        rank = np.where(np.isfinite(logs), logs, -700.0).mean(axis=1)
        order = np.argsort(np.argsort(rank, kind="stable"), kind="stable")
        return order * min(self.size, count) // count
