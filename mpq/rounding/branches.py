"""Codes with branches beside them, with regard to the inputs that the weight meets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from torch import Tensor

from mpq.quantization.branch_fits import with_branches
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.numerics import Numerics
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.rounding import weight_grid
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding._base import WeightRounding
from mpq.rounding.diagonal_blocks import blocks
from mpq.rounding.objective import Objective

DAMPING: Final = 0.01
"""Of the form that branches are fitted by, as in GPTQ."""


@final
@dataclass(frozen=True, eq=False)
class Branching:
    """One weight in formats with branches.

    Args:
        rows: ``[O, K]`` float32 that codes should be near, on the CPU.
        moment: ``[G, K, k]``, see ``WeightRounding.codes``.
        rounding: How codes are found.
        method: How the range of what a branch leaves is chosen.
        numerics: How scales are stored.
    """

    rows: Tensor
    moment: Tensor
    rounding: WeightRounding
    method: RangeMethod
    numerics: Numerics

    def codes(
        self, formats: Sequence[TensorFormat], plain: Mapping[TensorFormat, Codes]
    ) -> dict[TensorFormat, Codes]:
        """Codes of each format, see ``with_branches``; the error is the damped second moment's.

        Args:
            formats: With branches.
            plain: Codes in plain formats, as far as they are known.
        """
        objective = Objective.of(self.moment, DAMPING)
        form = ErrorForm.of_blocks(blocks(objective.form))
        alike: dict[TensorFormat, list[TensorFormat]] = {}
        for tensor_format in formats:
            alike.setdefault(tensor_format.plain, []).append(tensor_format)
        found: dict[TensorFormat, Codes] = {}
        for base, members in alike.items():
            known = plain.get(base) or self._rounded(self.rows, base)

            def rounded(target: Tensor, base: TensorFormat = base) -> Codes:
                return self._rounded(target, base)

            codes = with_branches(self.rows, members, form, known, rounded)
            found |= dict(zip(members, codes, strict=True))
        return found

    def _rounded(self, target: Tensor, base: TensorFormat) -> Codes:
        grid = weight_grid(target, base, self.method, self.numerics)
        (found,) = self.rounding.codes(target, self.moment, [base], [grid], self.numerics)
        return found
