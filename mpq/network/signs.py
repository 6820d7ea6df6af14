"""Random signs by example: the same ones however examples are split over batches or machines."""

import hashlib
from functools import cache
from math import ceil, prod
from typing import Final, Self, TypeAlias, final

import torch
from torch import Tensor

from mpq.network.examples import Batch

_STEP: Final = -7046029254386353131
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 as int64, whose products wrap around as those of uint64 do."""


@final
class ExampleSigns:
    r"""Signs that depend on a seed, a number, an example and a place in it, and on nothing else.

    Bits are those of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) at a
    counter, so that any of them is had without those before it, on any device alike.

    Args:
        seed: Of all signs.
        number: Of the probe: another one has other signs.
        start: Index of the first example among all that there are.
        size: How many examples there are, ``N``.
    """

    def __init__(self, seed: int, number: int, start: int, size: int) -> None:
        self._seed, self._number = seed, number
        self._start, self._size = start, size
        self._draws = 0

    @classmethod
    def of(cls, seed: int, number: int, batch: Batch) -> Self:
        """Those of a batch's examples."""
        return cls(seed, number, batch.start, batch.size)

    def bits(self, shape: tuple[int, int, int], device: torch.device) -> Tensor:
        """The next draw, packed: a bit for each sign, for ``signs_of``.

        Args:
            shape: ``(N, P, C)``. Where there are more or fewer rows than examples, all rows of an
                example are drawn together; rows that no example owns count as one example.
            device: Where they are wanted.

        Returns:
            ``[N, P, ceil(C / 8)]``, bytes.
        """
        rows, positions, channels = shape
        size = self._size if rows % self._size == 0 else 1
        row_bytes = ceil(channels / 8)
        count = rows // size * positions * row_bytes  # of an example
        words = self._words(size, ceil(count / 8), device)
        return words.view(torch.uint8)[:, :count].reshape(rows, positions, row_bytes)

    def signs(self, like: Tensor) -> Tensor:
        """The next draw, float64 (float32 on MPS), of a shape ``[N, ..., C]`` and on its device."""
        positions, channels = prod(like.shape[1:-1]), like.shape[-1]
        packed = self.bits((len(like), positions, channels), like.device)
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        return signs_of(packed, channels, dtype).reshape(like.shape)

    def _words(self, size: int, count: int, device: torch.device) -> Tensor:
        """``[size, count]`` int64."""
        told = f"{self._seed} {self._number} {self._draws}".encode()
        key = int.from_bytes(hashlib.sha256(told).digest()[:8], "little", signed=True)
        self._draws += 1
        examples = torch.arange(self._start, self._start + size, device=device)
        places = torch.arange(count, device=device)
        return _mixed(_mixed(examples * _STEP + key)[:, None] + places * _STEP)


Draws: TypeAlias = torch.Generator | ExampleSigns
"""What random signs are of: one after the other, or each example's own."""


def signs_of(packed: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """``[..., C]`` plus and minus one, from ``[..., ceil(C / 8)]`` packed bits."""
    # By rows of a table, instead of a shift and a mask for each bit.
    table = _table(packed.device, dtype)
    return torch.nn.functional.embedding(packed.int(), table).flatten(-2)[..., :channels]


@cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[256, 8]`` signs of every byte."""
    every = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return (every * 2 - 1).to(device, dtype)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros: int64 itself would repeat its sign."""
    return x >> bits & (1 << 64 - bits) - 1
