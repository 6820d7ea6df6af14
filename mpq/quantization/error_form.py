"""What errors of a weight's rows cost, by which branches are fitted: a quadratic form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self, final

import torch
from torch import Tensor

from mpq.errors import InputError

NUMBERS_AT_ONCE: Final = 1 << 22
"""Of matrices (32 MiB in float64) that rows have of their own, and that are solved together."""


EXACT_SIDE: Final = 512
"""Of an error's smaller side, up to which all its eigenvectors are found: beyond, they take far
longer than the few that are asked for."""
PASSES, SPARE = 8, 16
"""Steps of subspace iteration, and directions beside those that are asked for."""


@final
@dataclass(frozen=True, eq=False)
class ErrorForm:
    r"""The cost of errors ``E [O, K]`` of a weight, :math:`\sum_r e_r^T H_{g(r)} e_r`.

    All in float64, which holds squares of the smallest numbers, too.

    Args:
        blocks: Along the diagonal of ``H``: consecutive inputs, and ``[G, k, k]`` of each of the
            ``G`` groups of as many rows, symmetric and positive definite. None at all: every
            squared error counts 1.
    """

    blocks: tuple[tuple[slice, Tensor], ...] = ()

    @classmethod
    def of_blocks(cls, blocks: Iterable[tuple[slice, Tensor]]) -> Self:
        """Of blocks in any floating point, which are copied."""
        return cls(tuple((part, block.double()) for part, block in blocks))

    def of(self, errors: Tensor) -> float:
        """What errors ``[O, K]`` cost."""
        return float(self.whitened(errors).square_().sum())

    def whitened(self, errors: Tensor) -> Tensor:
        """``[O, K]`` float64 whose squares are the cost, ``E L`` with ``H = L L^T``."""
        return self._times(errors, self._lower)

    def gradient(self, errors: Tensor) -> Tensor:
        """``[O, K]`` float64, ``E H``: half of how the cost changes with every error."""
        return self._times(errors, self.blocks)

    def diagonal(self, num_rows: int) -> Tensor:
        """``[O, 1]`` or ``[O, K]`` float64: what the square of each error alone costs."""
        return self._by_row(
            (block.diagonal(dim1=-2, dim2=-1) for _, block in self.blocks), num_rows
        )

    def left_to_others(self, num_rows: int) -> Tensor:
        """As ``diagonal``, where the other errors of the row make it good: ``1 / [H^-1]_kk``."""
        inverses = (torch.cholesky_inverse(lower) for _, lower in self._lower)
        return self._by_row(
            (each.diagonal(dim1=-2, dim2=-1).reciprocal() for each in inverses), num_rows
        )

    def best_at(self, errors: Tensor, places: Tensor) -> Tensor:
        """``[O, K]`` float64 to be taken from errors, at some places alone: their cost is least.

        Args:
            errors: ``[O, K]``.
            places: ``[O, K]`` bool.
        """
        if all(block.shape[-1] == 1 for _, block in self.blocks):  # or none: no error helps another
            return torch.where(places, errors.double(), 0.0)
        found, wanted = torch.zeros_like(errors, dtype=torch.float64), self.gradient(errors)
        for part, block in self.blocks:
            for rows, matrix, columns, is_one in _alike(places[:, part], block):
                right = wanted[rows][:, part].gather(1, columns).mul_(is_one)
                solved = torch.linalg.solve(matrix, right[..., None])[..., 0].mul_(is_one)
                spread = torch.zeros_like(wanted[rows][:, part]).scatter_(1, columns, solved)
                found[rows, part] = spread
        return found

    def factors(self, errors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """``[O, r]`` and ``[r, K]`` whose product, taken from errors, leaves the least cost.

        The first ``r'`` columns and rows are those of rank ``r'``. By the eigenvectors of the
        smaller Gram matrix of ``E L``, or, where that is large, by subspace iteration (Halko et al.
        2011, arXiv:0909.4061), which is the least but for a little. Groups of rows that have forms
        of their own share the mean of these: then it is not the least.

        Args:
            errors: ``[O, K]``.
            rank: At most the smaller of ``O`` and ``K``.
        """
        shared = self._mean
        white = shared.whitened(errors)  # [O, K]
        if min(white.shape) > EXACT_SIDE:
            left = _leading(white, rank)
            return _balanced(left, left.T @ errors.double())
        if white.shape[0] <= white.shape[1]:
            left = _largest(white @ white.T, rank)
            return _balanced(left, left.T @ errors.double())
        right = _largest(white.T @ white, rank)
        return _balanced(white @ right, shared.whitened_back(right.T))

    def whitened_back(self, rows: Tensor) -> Tensor:
        """Inverse of ``whitened`` of rows of one group, ``[r, K]``."""
        found = rows.clone()
        for part, lower in self._lower:
            found[:, part] = torch.linalg.solve_triangular(
                lower[0], rows[:, part], upper=False, left=False
            )
        return found

    def costs_by_rank(self, errors: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """``[r + 1]`` what is left with the first ``0, 1, ... r`` columns and rows of a product."""
        groups = self.blocks[0][1].shape[0] if self.blocks else 1
        white = self.whitened(errors).unflatten(0, (groups, -1))  # [G, O / G, K]
        columns = left.double().unflatten(0, (groups, -1))
        changes = white.new_zeros(len(right))
        # Of as many groups at once as hold no more than a few copies of the rows do.
        step = max(1, NUMBERS_AT_ONCE // max(right.numel(), 1))
        for some in (slice(start, start + step) for start in range(0, groups, step)):
            lower = tuple((part, each[some]) for part, each in self._lower)
            count = len(white[some])
            rows = self._times(right.repeat(count, 1), lower).unflatten(0, (count, -1))
            # The square of a difference, written out: of all ranks by three products of matrices.
            mixed = (columns[some] * (white[some] @ rows.mT)).sum(dim=(0, 1)).cumsum(0)
            squares = ((columns[some].mT @ columns[some]) * (rows @ rows.mT)).sum(dim=0)
            changes += squares.cumsum(0).cumsum(1).diagonal() - 2 * mixed
        changes = torch.cat([changes.new_zeros(1), changes])
        costs: Tensor = white.square().sum() + changes
        return costs.clamp_min_(0.0)

    @cached_property
    def _lower(self) -> tuple[tuple[slice, Tensor], ...]:
        """Cholesky factors of the blocks."""
        return tuple((part, _factor(block)) for part, block in self.blocks)

    @cached_property
    def _mean(self) -> "ErrorForm":
        """The form of all rows together."""
        if not self.blocks or len(self.blocks[0][1]) == 1:
            return self
        return ErrorForm(tuple((part, b.mean(dim=0, keepdim=True)) for part, b in self.blocks))

    @staticmethod
    def _times(errors: Tensor, blocks: tuple[tuple[slice, Tensor], ...]) -> Tensor:
        if blocks and all(block.shape[-1] == 1 for _, block in blocks):
            # At once, as there is one for each input.
            counts = torch.cat([block[..., 0] for _, block in blocks], dim=1)  # [G, K]
            return errors.double() * counts.repeat_interleave(len(errors) // len(counts), dim=0)
        found = errors.double().clone()
        for part, block in blocks:
            own = found[:, part].unflatten(0, (len(block), -1))
            found[:, part] = (own @ block).flatten(0, 1)
        return found

    @staticmethod
    def _by_row(parts: Iterable[Tensor], num_rows: int) -> Tensor:
        """``[O, K]`` of ``[G, k]`` of each block; of none ones."""
        found = list(parts)
        if not found:
            return torch.ones(num_rows, 1, dtype=torch.float64)
        of_groups = torch.cat(found, dim=1)
        by_row: Tensor = of_groups.repeat_interleave(num_rows // len(of_groups), dim=0)
        return by_row


def _factor(block: Tensor) -> Tensor:
    lower, failed_at = torch.linalg.cholesky_ex(block)
    if failed_at.any():
        raise InputError(
            "the second moment of a layer's inputs is not positive semidefinite: a branch cannot "
            "be fitted by it"
        )
    found: Tensor = lower
    return found


def _largest(gram: Tensor, count: int) -> Tensor:
    """``[n, count]`` eigenvectors of a symmetric matrix, those of the largest eigenvalues first."""
    found: Tensor = torch.linalg.eigh(gram).eigenvectors
    return found[:, -count:].flip(1)


def _leading(white: Tensor, rank: int) -> Tensor:
    """``[O, rank]`` left singular vectors of a matrix, those of the largest values first."""
    # Of as many directions for all ranks up to a power of two, of which a smaller one has the same.
    size = min(2 ** (rank - 1).bit_length() + SPARE, *white.shape)
    draw = torch.Generator().manual_seed(0)
    found = torch.randn(white.shape[1], size, generator=draw, dtype=white.dtype)
    for _ in range(PASSES):
        found = white.T @ torch.linalg.qr(white @ found).Q
    basis = torch.linalg.qr(white @ found).Q
    turned: Tensor = basis @ torch.linalg.svd(basis.T @ white, full_matrices=False).U
    return turned[:, :rank]


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of columns and rows that are as long as each other: fp16 has few digits."""
    lengths = left.norm(dim=0), right.norm(dim=1)
    share = torch.where(lengths[0] * lengths[1] > 0, (lengths[1] / lengths[0]).sqrt(), 1.0)
    return left * share, right / share[:, None]


def _alike(places: Tensor, block: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Rows of about as many places, some at a time, each with a matrix of its own to be solved.

    Args:
        places: ``[O, k]`` bool.
        block: ``[G, k, k]``.

    Yields:
        Which rows ``[r]``; ``[r, n, n]`` of the form at the row's places, and 1 on the diagonal
        where it has less than ``n``; the places ``[r, n]``; and whether these are its own.
    """
    counts, of_group = places.sum(dim=1), len(places) // len(block)
    order = counts.argsort(descending=True, stable=True)
    order = order[: int((counts > 0).sum())]
    while len(order):
        most = int(counts[order[0]])
        rows, order = order.tensor_split([max(1, NUMBERS_AT_ONCE // most**2)])
        own = places[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        is_own = places[rows].gather(1, own)
        matrix = block[(rows // of_group)[:, None, None], own[:, :, None], own[:, None, :]]
        matrix = matrix * (is_own[:, :, None] & is_own[:, None, :])
        matrix.diagonal(dim1=1, dim2=2).add_((~is_own).double())
        yield rows, matrix, own, is_own.double()
