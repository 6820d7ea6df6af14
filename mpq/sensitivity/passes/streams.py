"""Random numbers that do not depend on how the examples are split into batches."""

import hashlib
from typing import final

import torch
from torch import Tensor

from mpq.network.divergence import random_signs
from mpq.sensitivity.passes.per_example import by_example


@final
class Streams:
    """A generator for every purpose, each of which goes on from batch to batch.

    Drawn from one generator in turn, what a second probe meets would depend on how many examples
    the first one's batch had. A stream that is read once per batch, with the examples in the first
    axis, gives each example the same numbers in batches of any size.

    Args:
        seed: Of all streams; stream 0 is the plain generator of this seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[int | str, torch.Generator] = {0: torch.Generator().manual_seed(seed)}

    @classmethod
    def of(cls, generator: torch.Generator) -> "Streams":
        """With a seed that a generator draws: other streams every time."""
        # A seed is an int64, which 2**62 is well within.
        return cls(int(torch.randint(2**62, (), generator=generator)))

    def __getitem__(self, purpose: int | str) -> torch.Generator:
        """The stream of a purpose, where the last batch left it."""
        if purpose not in self._streams:
            self._streams[purpose] = self.again(purpose)
        return self._streams[purpose]

    def again(self, purpose: int | str) -> torch.Generator:
        """The stream of a purpose from its beginning: the same numbers in every batch."""
        digest = hashlib.sha256(f"{self._seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def signs_by_example(
    like: Tensor, generator: torch.Generator, num_examples: int, batch_axis: int
) -> Tensor:
    """Plus and minus one, float64, of a tensor's shape, drawn example by example.

    Where it cannot be split by example (``by_example``), they are drawn for the whole of it.
    """
    signs = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    rows = by_example(signs, num_examples, batch_axis)  # a view
    if rows is None:
        return random_signs(like, generator)
    rows.copy_(random_signs(rows, generator))
    return signs
