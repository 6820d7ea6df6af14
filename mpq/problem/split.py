"""How layers are split into parts that each get bits of their own."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.json_object import quoted
from mpq.errors import InputError
from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS
from mpq.quantization.precision import Precision, spell_weight
from mpq.quantization.tensor_format import TensorFormat

CHANNELS: Final = "channels"
BLOCKS: Final = "blocks"
COLUMNS: Final = "columns"
ACTIVATIONS: Final = "activations"
"""Parts of what a layer reads, and not of its weight."""
HEADS: Final = "heads"
STEPS: Final = "steps"
"""Clusters of a diffusion's steps, at which what a layer reads has its own bits."""
OF_READS: Final = (ACTIVATIONS, STEPS)
"""Parts are of what layers read."""


@final
@dataclass(frozen=True)
class Split:
    """Parts of a layer: blocks of output channels or inputs, groups, heads, or of what it reads.

    >>> str(Split.parse("channels")), Split.parse("channels:16").size, Split.parse("blocks:4").size
    ('channels', 16, 4)

    Args:
        kind: ``channels``: consecutive ones, ``size`` at a time. ``blocks``: ``size`` blocks of as
            many channels each, the most sensitive ones together. ``columns``: consecutive inputs,
            ``size`` at a time, of all channels; of a convolution input channels with their kernels.
            ``groups``: the weights that share a scale. ``heads``: what makes one head's queries,
            keys or values (``mpq.network.heads``). ``activations``: of what a layer reads,
            consecutive input channels, ``size`` at a time. ``steps``: what a layer reads at each
            cluster of a diffusion's steps.
        size: See there; at least 1.
        is_tied: Whether the heads of queries, keys and values that meet share their bits.
    """

    kind: str
    size: int = 1
    is_tied: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads ``channels:16``, ``blocks:4``, ``columns:128``, ``groups``, ``activations:128``.

        And ``heads``, ``heads:tied``, ``steps``; ``none`` is no split.

        Raises:
            InputError: If it is something else.
        """
        if text == "none":
            return None
        if text in (HEADS, f"{HEADS}:tied"):
            return cls(HEADS, is_tied=text != HEADS)
        sized = re.fullmatch(r"(channels|blocks|columns|activations)(?::([1-9][0-9]{0,5}))?", text)
        match = sized or re.fullmatch("(groups|steps)()", text)
        if match is None or (match[1] in (BLOCKS, ACTIVATIONS) and match[2] is None):
            raise InputError(
                f"split is none, channels, channels:16 (blocks of 16 neighbours), blocks:4 (of "
                f"channels that are alike), columns:128 (blocks of 128 inputs), groups (that "
                f"share a scale), heads or heads:tied (of attention), activations:128 (128 "
                f"channels of what is read) or steps (of a diffusion); got {quoted(text)}"
            )
        return cls(match[1], int(match[2] or 1))

    def __str__(self) -> str:
        if self.is_tied:
            return f"{self.kind}:tied"
        is_one = self.size == 1 and self.kind not in (BLOCKS, ACTIVATIONS)
        return self.kind if is_one else f"{self.kind}:{self.size}"

    @property
    def axis(self) -> str:
        """What parts are of, as in ``ChannelBits``; or one of ``OF_READS``."""
        known = {COLUMNS: INPUTS, GROUPS: GROUPS, ACTIVATIONS: ACTIVATIONS, STEPS: STEPS}
        return known.get(self.kind, OUTPUTS)

    @property
    def of_weights(self) -> bool:
        """Whether parts are of weights, and not of what layers read."""
        return self.axis not in OF_READS

    def inputs_per_part(self, weight_shape: Sequence[int], group_size: int | None) -> int:
        """Consecutive weights of a row in a part, where these are not of output channels.

        Args:
            weight_shape: As torch stores it: of a convolution the kernel comes last.
            group_size: Weights that share a scale.
        """
        return (group_size or 1) if self.kind == GROUPS else self.size * prod(weight_shape[2:])

    def check(self, candidates: Iterable[Precision]) -> None:
        """Refuses candidates whose groups are not those of the parts.

        Raises:
            InputError: Names a size that fits.
        """
        if self.axis == OUTPUTS:
            return
        if self.axis == STEPS:
            _check_widths([p.activation for p in candidates])
            return
        if not self.of_weights:
            self._check_reads([p.activation for p in candidates])
            return
        found = {p.weight.group_size: p for p in candidates if p.weight.has_channels}
        sizes = sorted(size for size in found if size is not None)
        if self.kind == GROUPS and len(sizes) != 1:
            raise InputError(
                f"split groups (--split) needs formats with groups of one size, such as w2g64 and "
                f"w4g64; got sizes {', '.join(map(str, sizes)) or 'of none'}"
            )
        for size in sizes:
            if self.kind == COLUMNS and self.size % size:
                raise InputError(
                    f"split {self} (--split) cuts through groups of {size} weights, which share a "
                    f"scale ({spell_weight(found[size].weight)}): take a multiple of {size}, such "
                    f"as columns:{size} or columns:{2 * size}"
                )

    def _check_reads(self, reads: Sequence[TensorFormat]) -> None:
        sizes = sorted({f.group_size for f in reads if f.has_blocks and f.group_size})
        widths = {f.number.bits for f in reads if f.has_blocks}
        if len(widths) < 2:
            raise InputError(
                f"split {self} (--split) needs two formats of inputs with a scale for every token "
                f"and block that differ in bits, such as w4a4dg{self.size} and w4a8dg{self.size}"
            )
        for size in sizes:
            if self.size % size:
                raise InputError(
                    f"split {self} (--split) cuts through blocks of {size} inputs, which share a "
                    f"scale (a8dg{size}): take a multiple of {size}, such as activations:{size}"
                )

    @property
    def block(self) -> int:
        """Consecutive channels that are one part; 1 where parts need not be of neighbours."""
        return self.size if self.kind == CHANNELS else 1

    def parts(self, losses: Array) -> Columns:
        """``[O]`` the part of every channel, from 0 on; of inputs and groups, ``[U]``.

        Not of heads, which a network says.

        Args:
            losses: ``[O, B]`` or ``[U, B]``, what each loses at each candidate.
        """
        count = len(losses)
        if self.axis != OUTPUTS:  # each part has its own price already
            return np.arange(count)
        if self.kind == CHANNELS:
            return np.arange(count) // self.size
        # By the geometric mean over candidates, of those that lose anything.
        with np.errstate(divide="ignore"):
            logs = np.log(losses)
        rank = np.where(np.isfinite(logs), logs, -700.0).mean(axis=1)
        order = np.argsort(np.argsort(rank, kind="stable"), kind="stable")
        return order * min(self.size, count) // count


def _check_widths(reads: Sequence[TensorFormat]) -> None:
    widths = {f.number.bits for f in reads if f.is_scaled_integer}
    if len(widths) < 2:
        raise InputError(
            "split steps (--split) needs two formats of inputs that differ in bits, such as w4a4 "
            "and w4a8"
        )
