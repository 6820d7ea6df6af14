"""What patches of an image may be, in inference by patches. No torch."""

from dataclasses import dataclass
from typing import Final, final

from mpq.errors import InputError

_FEWEST: Final = 2
"""Patches along an axis: one is the network as a whole."""


@final
@dataclass(frozen=True)
class PatchRules:
    """What patches may be.

    Args:
        cut: Operation behind which the rest runs as a whole; ``None``: the best one.
        num_patches: Along rows, and along columns; ``None``: the best number.
        most_patches: The largest such number that is tried.
        most_recomputed: Multiply-accumulates more than without patches, as a share of all that the
            network takes, at the most.
        bits: Of every number between operations, the input among them.
        is_input_streamed: See ``PatchPlan``.

    Raises:
        InputError: If a number makes no sense.
    """

    cut: str | None = None
    num_patches: int | None = None
    most_patches: int = 4
    most_recomputed: float = 0.2
    bits: int = 8
    is_input_streamed: bool = False

    def __post_init__(self) -> None:
        if self.num_patches is not None and self.num_patches < _FEWEST:
            raise InputError(f"patches are at least {_FEWEST} per axis; got {self.num_patches}")
        if self.most_patches < _FEWEST:
            raise InputError(f"most patches are at least {_FEWEST}; got {self.most_patches}")
        if not self.most_recomputed >= 0:  # nan is neither
            raise InputError(f"a share recomputed is at least 0; got {self.most_recomputed}")
        if not 1 <= self.bits <= 64:
            raise InputError(f"numbers between operations have 1 to 64 bits; got {self.bits}")

    @property
    def counts(self) -> range:
        """Numbers of patches that are tried."""
        if self.num_patches is not None:
            return range(self.num_patches, self.num_patches + 1)
        return range(_FEWEST, self.most_patches + 1)
