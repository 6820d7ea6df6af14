"""GPTQ: one input after another, each one's error made good by those that follow."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.diagonal_blocks import blocks
from mpq.rounding.objective import Objective
from mpq.rounding.stack import Stack

BLOCK: Final = 32
"""Inputs whose errors are handed on together: within a block one by one, beyond it by BLAS."""


@final
@dataclass(frozen=True)
class Gptq(WeightRounding):
    """Optimal brain quantization in a fixed order (Frantar et al. 2022, arXiv:2210.17323).

    Inputs are rounded one after another, those with the largest second moment first; the error of
    each is made good by the weights of all that follow. Rows of all precisions go through together,
    as they share the factorization. Scales are those that rounding to nearest starts from, also of
    groups, which are those of the original order of inputs.

    Args:
        damping: Share of the mean of the second moment's diagonal that is added to it.
        activation_order: Whether the largest inputs come first.
    """

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "one input after another, its error made good by the next"

    damping: float = 0.01
    activation_order: bool = True

    def __post_init__(self) -> None:
        check_damping(self.name, self.damping)

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return _GptqSolver(Sequential.of(Objective.of(moment, self.damping), self.activation_order))


def check_damping(name: str, damping: float) -> None:
    """Refuses a damping that leaves nothing to invert.

    Raises:
        InputError: If it is not above 0 and at most 1e6.
    """
    if not 0 < damping <= 1e6:
        raise InputError(f"{name} needs a damping above 0; got {damping}")


@dataclass(frozen=True, eq=False)
class _GptqSolver(StackSolver):
    sequential: "Sequential"

    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        return self.sequential.codes(stack), stack


@final
@dataclass(frozen=True, eq=False)
class Sequential:
    """Rounds the inputs of each of a form's blocks one after another.

    Args:
        parts: Of each block its inputs and its factorization.
    """

    parts: tuple[tuple[slice, "Factorization"], ...]

    @classmethod
    def of(cls, objective: Objective, activation_order: bool = True) -> Self:
        """Of a damped form, see ``Factorization.of``."""
        found = ((p, Factorization.of(b, activation_order)) for p, b in blocks(objective.form))
        return cls(tuple(found))

    def codes(self, stack: Stack) -> Tensor:
        """``[..., K, R]`` codes of a stack, at its scales."""
        return torch.cat([each.codes(stack.of_inputs(part)) for part, each in self.parts], dim=-2)

    def codes_and_errors(self, stack: Stack, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the form of the errors ``[..., R]``, which is found on the way.

        Args:
            stack: The rows.
            unit: ``[..., 1, R]`` in which their errors are.
        """
        errors = torch.zeros_like(unit[..., 0, :])
        found = [each.codes(stack.of_inputs(part), errors, unit) for part, each in self.parts]
        return torch.cat(found, dim=-2), errors


@final
@dataclass(frozen=True, eq=False)
class Factorization:
    """What an input's error costs those that follow, in one block of a form.

    Args:
        order: ``[..., k]`` inputs, in the order in which they are rounded.
        upper: ``[..., k, k]`` float32, upper Cholesky factor of the form's inverse in that order.
    """

    order: Tensor
    upper: Tensor

    @classmethod
    def of(cls, form: Tensor, activation_order: bool) -> Self:
        """Of a damped form ``[..., k, k]``, which can be inverted.

        Raises:
            InputError: If it cannot, as a form that is not positive semidefinite was damped little.
        """
        diagonal = form.diagonal(dim1=-2, dim2=-1)
        order = torch.arange(form.shape[-1]).expand(diagonal.shape)
        if activation_order:
            # Stable, as equal inputs must not come in another order elsewhere.
            order = diagonal.argsort(descending=True, stable=True)
        # In double precision: two factorizations of what is close to singular. At most two of these
        # matrices are there at once, which are large ones.
        lower, failed_at = torch.linalg.cholesky_ex(_ordered(form, order))
        if failed_at.any():
            raise InputError(
                "the second moment of a layer's inputs is not positive semidefinite as far as it "
                "was damped; give the rounding a larger damping, such as 0.01"
            )
        inverse = torch.cholesky_inverse(lower)
        del lower
        return cls(order, torch.linalg.cholesky(inverse, upper=True).float())

    def codes(
        self, stack: Stack, total: Tensor | None = None, unit: Tensor | None = None
    ) -> Tensor:
        """``[..., k, R]`` codes of a stack, at its scales.

        Args:
            stack: The rows.
            total: ``[..., R]`` to which the form of the errors is added, in squared units: with
                ``U`` the factor, errors of the numbers are ``U^T e``, and the form is
                ``(U^T U)^-1``, so that it is the squared length of ``e``.
            unit: ``[..., 1, R]``.
        """
        left = stack.target.take_along_dim(self.order[..., None], dim=-2)
        ordered = torch.empty_like(left)
        for start in range(0, stack.num_inputs, BLOCK):
            stop = min(start + BLOCK, stack.num_inputs)
            errors = self._block(stack, left, ordered, start, stop)
            subtract(left[..., stop:, :], self.upper[..., start:stop, stop:].mT, errors)
            if total is not None and unit is not None:
                total += errors.div_(unit).square_().sum(dim=-2)
        places = self.order[..., None].expand_as(ordered)
        return torch.empty_like(ordered).scatter_(-2, places, ordered)

    def _block(self, stack: Stack, left: Tensor, found: Tensor, start: int, stop: int) -> Tensor:
        """Rounds some inputs in place; ``[..., k, R]`` their errors, in units of the factor."""
        cells = stack.cells(self.order[..., start:stop]).one_by_one()
        errors = torch.empty_like(left[..., start:stop, :])
        own = self.upper[..., start:stop, start:stop]
        lengths = own.diagonal(dim1=-2, dim2=-1)[..., None].unbind(-2)
        rows = (t[..., start:stop, :].unbind(-2) for t in (left, found))
        steps = zip(cells, lengths, *rows, errors.unbind(-2), strict=True)
        for at, (cell, length, wanted, codes, error) in enumerate(steps):
            codes.copy_(cell.codes(wanted))
            torch.sub(wanted, cell.numbers(codes), out=error).div_(length)
            subtract_outer(left[..., start + at + 1 : stop, :], own[..., at, at + 1 :], error)
        return errors


def _ordered(form: Tensor, order: Tensor) -> Tensor:
    """``[..., k, k]`` float64: rows and columns in an order ``[..., k]``."""
    rows = form.take_along_dim(order[..., None], dim=-2)
    return rows.take_along_dim(order[..., None, :], dim=-1).double()


def subtract(values: Tensor, left: Tensor, right: Tensor) -> None:
    """From ``[..., k, R]``, in place, the product of ``[..., k, K]`` and ``[..., K, R]``."""
    product = torch.Tensor.addmm_ if values.ndim == 2 else torch.Tensor.baddbmm_
    product(values, left, right, alpha=-1.0)


def subtract_outer(values: Tensor, of_inputs: Tensor, of_rows: Tensor) -> None:
    """From ``[..., k, R]``, in place, every product of ``[..., k]`` and ``[..., R]``."""
    if values.ndim == 2:
        values.addr_(of_inputs, of_rows, alpha=-1.0)
    else:
        values.addcmul_(of_inputs[..., :, None], of_rows[..., None, :], value=-1.0)
