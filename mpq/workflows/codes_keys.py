"""What determines codes, as checksums: under which names they are kept."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Self, final

import torch
from torch import Tensor

from mpq.quantization.codes import Codes, second_parts
from mpq.quantization.fingerprint import checksum
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.stored import StoredWeight, joined
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import WeightRounding
from mpq.rounding.branches import Branching
from mpq.sensitivity import Estimation
from mpq.workflows.cache_keys import arithmetic, code_of, key_of, network_parts

OF_CODES: Final = ("quantization", "rounding")
"""Folders of mpq that decide what a weight and a second moment become."""
NUMBERS_TOGETHER: Final = 1 << 20
"""That are held of weights which are rounded side by side, as small ones take as long as one."""


@final
@dataclass(frozen=True, eq=False)
class ToRound:
    """A weight that is to be rounded, with all that its codes depend on.

    Args:
        rows: ``[O, K]`` float32 of the weight, on the CPU.
        target: ``[O, K]`` that codes should be near: the rows, or what they were moved to.
        moment: ``[G, K, k]``, see ``WeightRounding.codes``.
        formats: That need a scale; all that have no branch are rounded together.
        grids: Where scales start, of each format.
        numerics: How scales are stored.
        rounding: How codes are found.
        weight_range: How the range of what a branch leaves is chosen, one of ``RANGE_METHODS``.
    """

    rows: Tensor
    target: Tensor
    moment: Tensor
    formats: Sequence[TensorFormat]
    grids: Sequence[Grid]
    numerics: Numerics
    rounding: WeightRounding
    weight_range: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows of a group, inputs, and inputs of a block of the moment: see ``ToRoundTogether``."""
        return len(self.target) // len(self.moment), self.target.shape[1], self.moment.shape[-1]

    @property
    def size(self) -> int:
        """Numbers that are held: of the moment, or of the rows in all formats."""
        of_group, inputs, block = self.shape
        return len(self.moment) * inputs * max(block, of_group * len(self.formats))

    @cached_property
    def key(self) -> str:
        """SHA-256 of all of it, and of what computes with it.

        Formats that are rounded together are columns of one product, whose last bits may depend on
        how many there are: the same format beside others is another entry.
        """
        grids = (tensor for grid in self.grids for tensor in (grid.scale, grid.zero_point))
        return key_of(
            {
                "weight": checksum([self.rows]),
                "target": checksum([self.target]),
                "moment": checksum([self.moment]),
                "grids": checksum(grids),
                "formats": repr(list(self.formats)),
                "numerics": repr(self.numerics),
                "rounding": repr(self.rounding),
                **({"weight_range": self.weight_range} if self.branched else {}),
                "code": code_of(OF_CODES, self.rounding),
                "arithmetic": arithmetic("cpu"),
            }
        )

    @cached_property
    def branched(self) -> list[TensorFormat]:
        """Formats with branches."""
        return [f for f in self.formats if f.branch is not None]

    @cached_property
    def plain(self) -> "ToRound":
        """The same in the other formats."""
        pairs = zip(self.formats, self.grids, strict=True)
        kept = [(f, grid) for f, grid in pairs if f.branch is None]
        return replace(self, formats=[f for f, _ in kept], grids=[grid for _, grid in kept])

    def with_branches(self, plain: Sequence[StoredWeight]) -> list[StoredWeight]:
        """Of each format, from what was found of the ``plain`` ones."""
        found = dict(zip(self.plain.formats, plain, strict=True))
        if self.branched:
            method = RANGE_METHODS.build(self.weight_range)
            weight = Branching(self.target, self.moment, self.rounding, method, self.numerics)
            known = {f: Codes.of_stored(stored, f) for f, stored in found.items()}
            with torch.no_grad():
                made = weight.codes(self.branched, known)
            found |= {f: codes.stored(self.rows) for f, codes in made.items()}
        return [found[f] for f in self.formats]

    def codes(self) -> list[StoredWeight]:
        """Of each format, of a weight whose rows have one moment."""
        return self.with_branches(self.plain._codes() if self.plain.formats else [])

    def _codes(self) -> list[StoredWeight]:
        """The same where no format has a branch."""
        parts: list[list[StoredWeight]] = []
        with torch.no_grad():
            for some, codes in self.rounding.codes_in_parts(
                self.target, self.moment, self.formats, self.grids, self.numerics
            ):
                parts.append([each.stored(self.rows[some]) for each in codes])
        told = zip(zip(*parts, strict=True), self.formats, self.grids, strict=True)
        return [joined(each, second_parts(f, grid.second)) for each, f, grid in told]


@final
@dataclass(frozen=True, eq=False)
class ToRoundTogether:
    """Weights of one shape that go through all steps side by side.

    Args:
        weights: One or more, which have formats, numerics and rounding in common.
    """

    weights: Sequence[ToRound]

    @classmethod
    def of(cls, weights: Iterable[ToRound]) -> Iterator[Self]:
        """All weights, those of a shape together as far as memory goes."""
        waiting: dict[tuple[int, int, int], list[ToRound]] = {}
        for weight in weights:
            members = waiting.setdefault(weight.shape, [])
            if members and sum(x.size for x in members) + weight.size > NUMBERS_TOGETHER:
                yield cls([*members])
                members.clear()
            members.append(weight)
            if weight.size >= NUMBERS_TOGETHER:
                yield cls(waiting.pop(weight.shape))
        yield from (cls(members) for members in waiting.values())

    def codes(self) -> list[list[StoredWeight]]:
        """Of each weight, of each format."""
        first = self.weights[0]
        if len(self.weights) == 1 and len(first.moment) == 1:
            return [first.codes()]
        if not first.plain.formats:
            return [weight.with_branches([]) for weight in self.weights]
        with torch.no_grad():
            found = first.rounding.codes_together(
                [weight.target for weight in self.weights],
                [weight.moment for weight in self.weights],
                first.plain.formats,
                [weight.plain.grids for weight in self.weights],
                first.numerics,
            )
        return [
            weight.with_branches([codes.stored(weight.rows) for codes in each])
            for weight, each in zip(self.weights, found, strict=True)
        ]

    @cached_property
    def keys(self) -> list[str]:
        """Of each weight the SHA-256 of all that its codes depend on, down to the last bits.

        These may depend on the weights beside it, as they do on formats.
        """
        own = [weight.key for weight in self.weights]
        if len(own) == 1:
            return own
        beside = json.dumps(own)
        parts = ({"own": key, "place": str(i), "beside": beside} for i, key in enumerate(own))
        return [key_of(part) for part in parts]


def network_key(
    on: Estimation,
    rounding: WeightRounding,
    formats: Sequence[TensorFormat],
    seed: int,
    shown: str,
) -> str:
    """SHA-256 of what determines the codes of all layers, their second moments included.

    Args:
        on: See ``rounded_weights``.
        rounding: How codes are found.
        formats: That all weights are rounded to.
        seed: Of the probes that guide the second moments.
        shown: Which of the examples codes are found with.
    """
    plain = replace(on.quantizer, stored={})
    return key_of(
        {
            **network_parts(on.network, on.data, plain, on.candidates),
            "formats": repr(list(formats)),
            "by": repr(rounding),
            "by_code": code_of((), rounding),
            "seed": str(seed),
            "shown": shown,
        }
    )
