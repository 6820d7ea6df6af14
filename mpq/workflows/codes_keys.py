"""What determines codes, as checksums: under which names they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor

from mpq.quantization.fingerprint import checksum
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import TensorFormat
from mpq.quantization.stored import StoredWeight
from mpq.rounding import WeightRounding
from mpq.sensitivity import Estimation
from mpq.workflows.cache_keys import arithmetic, code_of, key_of, network_parts

OF_CODES: Final = ("quantization", "rounding")
"""Folders of mpq that decide what a weight and a second moment become."""


@final
@dataclass(frozen=True, eq=False)
class ToRound:
    """A weight that is to be rounded, with all that its codes depend on.

    Args:
        rows: ``[O, K]`` float32 of the weight, on the CPU.
        target: ``[O, K]`` that codes should be near: the rows, or what they were moved to.
        moment: ``[G, K, k]``, see ``WeightRounding.codes``.
        formats: That need a scale; all are rounded together.
        grids: Where scales start, of each format.
        numerics: How scales are stored.
        rounding: How codes are found.
    """

    rows: Tensor
    target: Tensor
    moment: Tensor
    formats: Sequence[TensorFormat]
    grids: Sequence[Grid]
    numerics: Numerics
    rounding: WeightRounding

    def codes(self) -> list[StoredWeight]:
        """Of each format."""
        with torch.no_grad():
            found = self.rounding.codes(
                self.target, self.moment, self.formats, self.grids, self.numerics
            )
        return [codes.stored(self.rows) for codes in found]

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
                "code": code_of(OF_CODES, self.rounding),
                "arithmetic": arithmetic("cpu"),
            }
        )


def network_key(
    on: Estimation, rounding: WeightRounding, formats: Sequence[TensorFormat], seed: int
) -> str:
    """SHA-256 of what determines the codes of all layers, their second moments included.

    Args:
        on: See ``rounded_weights``.
        rounding: How codes are found.
        formats: That all weights are rounded to.
        seed: Of the probes that guide the second moments.
    """
    plain = replace(on.quantizer, stored={})
    return key_of(
        {
            **network_parts(on.network, on.data, plain, on.candidates),
            "formats": repr(list(formats)),
            "by": repr(rounding),
            "by_code": code_of((), rounding),
            "seed": str(seed),
        }
    )
