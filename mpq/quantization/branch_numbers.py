"""The numbers of a branch, as they are kept beside a weight's codes.

No torch here, as in ``mpq.quantization.stored``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, final

import numpy as np

from mpq.quantization.side_branch import LowRank, SideBranch, Sparse

OF_SPARSE: Final = ("sparse_counts", "sparse_columns", "sparse_values")
"""Names of the arrays of a sparse branch in a file."""
OF_LOW_RANK: Final = ("left", "right")
"""The same of a low-rank one."""


class BranchNumbers(ABC):
    """What is added to the numbers that the codes of a weight ``[O, K]`` stand for."""

    @abstractmethod
    def part(self, rows: "slice | np.ndarray[Any, np.dtype[np.int64]]") -> "BranchNumbers":
        """That of some rows."""

    @abstractmethod
    def numbers(self, num_inputs: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """``[O, K]`` as a matrix, the same numbers whichever rows are asked for.

        Args:
            num_inputs: ``K``.
        """

    @abstractmethod
    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Its arrays by their names in a file."""

    @abstractmethod
    def why_not(self, branch: SideBranch | None, shape: tuple[int, int]) -> str:
        """Why it is not the branch of a format; empty: it is.

        Args:
            branch: Of the format.
            shape: ``[O, K]`` of the weight.
        """


@final
@dataclass(frozen=True, eq=False)
class SparseNumbers(BranchNumbers):
    """Numbers at places of their own, row by row.

    Args:
        counts: ``[O]`` int32, how many a row has.
        columns: ``[N]`` int32, where they are in their rows, rising in each.
        values: ``[N]`` float16.
    """

    counts: "np.ndarray[Any, np.dtype[np.int32]]"
    columns: "np.ndarray[Any, np.dtype[np.int32]]"
    values: "np.ndarray[Any, np.dtype[np.float16]]"

    @classmethod
    def of(cls, matrix: "np.ndarray[Any, np.dtype[np.float16]]") -> Self:
        """Of all numbers of a matrix ``[O, K]`` that are not 0."""
        rows, columns = np.nonzero(matrix)
        counts = np.bincount(rows, minlength=len(matrix)).astype(np.int32)
        return cls(counts, columns.astype(np.int32), matrix[rows, columns])

    def part(self, rows: "slice | np.ndarray[Any, np.dtype[np.int64]]") -> Self:
        """See ``BranchNumbers``."""
        counts = self.counts[rows].astype(np.int64)
        first = np.cumsum(self.counts, dtype=np.int64)[rows] - counts
        # Places from 0 on in what is asked for, each moved to where its row begins here.
        moved = np.repeat(first - (np.cumsum(counts) - counts), counts)
        places = np.arange(counts.sum()) + moved
        return type(self)(self.counts[rows], self.columns[places], self.values[places])

    def numbers(self, num_inputs: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """See ``BranchNumbers``."""
        found = np.zeros((len(self.counts), num_inputs), np.float32)
        found[np.repeat(np.arange(len(self.counts)), self.counts), self.columns] = self.values
        return found

    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """See ``BranchNumbers``."""
        return dict(zip(OF_SPARSE, (self.counts, self.columns, self.values), strict=True))

    def why_not(self, branch: SideBranch | None, shape: tuple[int, int]) -> str:
        """See ``BranchNumbers``."""
        if not isinstance(branch, Sparse):
            return "have a sparse branch"
        types = tuple(str(array.dtype) for array in self.arrays().values())
        if types != ("int32", "int32", "float16") or self.counts.shape != shape[:1]:
            return f"have a sparse branch of {types}, not of {shape[0]} rows"
        most, count = branch.count(shape[0] * shape[1]), len(self.columns)
        is_fine = self.counts.min(initial=0) >= 0 and self.counts.sum(dtype=np.int64) == count
        is_fine &= self.columns.shape == self.values.shape == (count,)
        if not is_fine or count > most:
            return f"have a sparse branch of {len(self.values)} numbers, not of up to {most}"
        place = np.repeat(np.arange(shape[0]), self.counts) * shape[1] + self.columns
        is_inside = ((self.columns >= 0) & (self.columns < shape[1])).all()
        if not is_inside or (np.diff(place) <= 0).any() or not np.isfinite(self.values).all():
            return "have a sparse branch whose places do not rise, or whose numbers are not finite"
        return ""


@final
@dataclass(frozen=True, eq=False)
class LowRankNumbers(BranchNumbers):
    """A product of two matrices.

    Args:
        left: ``[O, r]`` float16.
        right: ``[r, K]`` float16.
    """

    left: "np.ndarray[Any, np.dtype[np.float16]]"
    right: "np.ndarray[Any, np.dtype[np.float16]]"

    def part(self, rows: "slice | np.ndarray[Any, np.dtype[np.int64]]") -> Self:
        """See ``BranchNumbers``."""
        return type(self)(self.left[rows], self.right)

    def first(self, rank: int) -> Self:
        """Of its first columns and rows."""
        return type(self)(self.left[:, :rank], self.right[:rank])

    def numbers(self, num_inputs: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """See ``BranchNumbers``."""
        left, right = self.left.astype(np.float32), self.right.astype(np.float32)
        found = np.zeros((len(left), num_inputs), np.float32)
        # One after the other: a product of matrices adds up in an order that depends on how many
        # rows there are. Products of two fp16 are float32 without rounding.
        for column, row in zip(left.T, right, strict=True):
            found += column[:, None] * row
        return found

    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """See ``BranchNumbers``."""
        return dict(zip(OF_LOW_RANK, (self.left, self.right), strict=True))

    def why_not(self, branch: SideBranch | None, shape: tuple[int, int]) -> str:
        """See ``BranchNumbers``."""
        if not isinstance(branch, LowRank):
            return "have a low-rank branch"
        rank = min(branch.rank, *shape)
        shapes, expected = (self.left.shape, self.right.shape), ((shape[0], rank), (rank, shape[1]))
        if shapes != expected or {str(a.dtype) for a in self.arrays().values()} != {"float16"}:
            return f"have a low-rank branch of {shapes}, not of {expected} in float16"
        is_fine = all(np.isfinite(array).all() for array in self.arrays().values())
        return "" if is_fine else "have a low-rank branch that is not finite"


def branch_of(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> BranchNumbers | None:
    """The branch among a weight's arrays; ``None``: it has none."""
    if set(OF_SPARSE) <= arrays.keys():
        return SparseNumbers(*_named(arrays, OF_SPARSE))
    if set(OF_LOW_RANK) <= arrays.keys():
        return LowRankNumbers(*_named(arrays, OF_LOW_RANK))
    return None


def _named(
    arrays: "Mapping[str, np.ndarray[Any, Any]]", names: Sequence[str]
) -> "list[np.ndarray[Any, Any]]":
    return [arrays[name] for name in names]
