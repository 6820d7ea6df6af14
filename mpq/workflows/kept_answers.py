"""What the original answered to every batch, as far as there is room to keep it."""

from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.bounds import machine_bytes
from mpq._support.pages import ALLOWED
from mpq.errors import DataError

_SHARE = 8
"""Answers may take an eighth of memory."""


@final
class KeptAnswers:
    """Answers by where a batch begins among the examples.

    Args:
        most_bytes: What they may take together; later ones are known to be there, and not kept.
    """

    def __init__(self, most_bytes: float) -> None:
        self._left = most_bytes
        self._kept = dict[int, Tensor]()
        self._sizes = dict[int, int]()  # also of those that are not kept

    def add(self, start: int, outputs: Tensor) -> None:
        """``[N, P, C]`` of the batch that begins there."""
        self._sizes[start] = len(outputs)
        self._left -= outputs.numel() * outputs.element_size()
        if self._left >= 0:
            self._kept[start] = outputs

    def at(self, start: int) -> Tensor | None:
        """Of the batch that begins there; ``None``: it was not kept.

        Raises:
            DataError: If none begins there.
        """
        if start not in self._sizes:
            raise DataError(
                "the data gave other batches than at first; the function must yield the same "
                "examples every time it is called"
            )
        return self._kept.get(start)

    def cut(self, at_once: int) -> "KeptAnswers":
        """The same, so many examples at once."""
        found = KeptAnswers(self._left)
        for start, size in self._sizes.items():
            found._sizes |= {start + i: min(at_once, size - i) for i in range(0, size, at_once)}
        for start, outputs in self._kept.items():
            parts = enumerate(outputs.split(at_once))
            found._kept |= {start + at_once * index: part for index, part in parts}
        return found

    def moved(self, starts: Iterator[int]) -> "KeptAnswers":
        """The same batches in order, beginning elsewhere."""
        found = KeptAnswers(self._left)
        for (old, size), start in zip(self._sizes.items(), starts, strict=True):
            found._sizes[start] = size
            if old in self._kept:
                found._kept[start] = self._kept[old]
        return found

    def drawn(self, share: float, rng: np.random.Generator) -> dict[int, list[int]]:
        """Places of some examples, at least one, by where their batch begins.

        Of as few batches as hold so many: each batch more is a pass of its own.
        """
        left = max(1, round(share * sum(self._sizes.values())))
        found = dict[int, list[int]]()
        for start in rng.permutation(list(self._sizes)).tolist():
            size = self._sizes[start]
            found[start] = sorted(rng.choice(size, min(size, left), replace=False).tolist())
            left -= len(found[start])
            if not left:
                break
        return found

    @property
    def is_whole(self) -> bool:
        """Whether all are kept."""
        return len(self._kept) == len(self._sizes)


def most_kept_bytes(device: torch.device) -> float:
    """What answers on a device may take: a share of it, or of what the process may hold."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / _SHARE
    return (ALLOWED.get() or machine_bytes()) / _SHARE
