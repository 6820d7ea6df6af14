"""Leaving out what is nearly an assignment that is known already."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.json_arrays import columns
from mpq.errors import InputError
from mpq.problem.schema import check


@final
@dataclass(frozen=True, eq=False)
class Cut:
    """Assignments must differ from a given one in some layers: as a row, linear like a budget.

    Args:
        columns: ``[L]`` of the assignment to keep away from.
        num_layers: In how many layers at least.

    Raises:
        InputError: If the number is below 1, where nothing would be left out, or a column is below
            0, which numpy would count from the end.
    """

    columns: Columns
    num_layers: int

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise InputError(f"a cut is by at least 1 differing layer; got {self.num_layers}")
        if (self.columns < 0).any():
            raise InputError(f"a cut's columns count from 0; got {int(self.columns.min())}")

    def is_met(self, columns: Columns) -> bool:
        """Whether an assignment ``[L]`` is far enough away."""
        return int((columns != self.columns).sum()) >= self.num_layers

    def row(self, num_precisions: int) -> tuple[Array, float]:
        """``[L, B]`` 1 where a cell is the same, and how many the same cells may be."""
        # To differ in at least k of L layers is to agree in at most L - k: linear in the choices,
        # with whole numbers only, so that sums of the row are exact.
        same = np.zeros((len(self.columns), num_precisions))
        same[np.arange(len(self.columns)), self.columns] = 1.0
        return same, float(len(self.columns) - self.num_layers)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"columns": self.columns.tolist(), "num_layers": self.num_layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing or of another kind.
        """
        check(data, "cut", "cut")
        return cls(columns(data["columns"], "not a cut: columns"), int(data["num_layers"]))
