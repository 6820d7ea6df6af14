"""What a rounding is judged by: the squared error of a layer's outputs, as a quadratic form."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from mpq.rounding.diagonal_blocks import add_to_diagonal, diagonal, product
from mpq.rounding.stack import Stack


@final
@dataclass(frozen=True, eq=False)
class Objective:
    r"""The squared error of outputs, :math:`d^T H d` for an error ``d`` of a weight's row.

    Args:
        form: ``[..., K, k]`` float32: the second moment of the inputs, in units of the mean of its
            diagonal, damped; of several groups of rows, or of one. Of one block or of several
            (``mpq.rounding.diagonal_blocks``); between blocks it is 0.
    """

    form: Tensor

    @classmethod
    def of(cls, moment: Tensor, damping: float) -> Self:
        """Of a second moment, whose diagonal is raised by a share of its mean.

        The damping is what few examples do not say: all of an error counts a little, and the form
        can be inverted. Inputs that are always 0 count by it alone.

        Args:
            moment: ``[..., K, k]``, symmetric and positive semidefinite.
            damping: Share of the mean of the diagonal, above 0.
        """
        mean = diagonal(moment).double().mean(dim=-1)[..., None, None]
        # Of a layer that only reads zeros every rounding is as good: all weights count the same.
        unit = torch.where(mean > 0, mean, 1.0).float()
        raised = torch.where(mean > 0, damping, 1.0)[..., 0].float()
        # In these units squared errors of small inputs do not vanish in float32.
        form = moment.float() / unit
        add_to_diagonal(form, raised)
        return cls(form)

    @property
    def diagonal(self) -> Tensor:
        """``[..., K]``, positive."""
        return diagonal(self.form)

    def of_errors(self, errors: Tensor) -> Tensor:
        """``[..., R]`` for errors ``[..., K, R]``, a column per row of the weight."""
        return product(self.form, errors).mul_(errors).sum(dim=-2)

    def of_codes(self, stack: Stack, codes: Tensor, unit: Tensor) -> Tensor:
        """``[..., R]`` for codes ``[..., K, R]``, in squared units, such as ``largest``."""
        return self.of_errors(_errors(stack, codes, unit))

    def of_inputs(self, stack: Stack, codes: Tensor, unit: Tensor) -> Tensor:
        """``[..., K, R]`` of each code alone, as if inputs did not hang together; same units."""
        return _errors(stack, codes, unit).square_().mul_(self.diagonal[..., None])


def largest(stack: Stack) -> Tensor:
    """``[..., 1, R]`` the largest weight of each row: squares of others may be no float32."""
    found = stack.target.abs().amax(dim=-2, keepdim=True)
    return found.clamp_min_(torch.finfo(torch.float32).tiny)


def _errors(stack: Stack, codes: Tensor, unit: Tensor) -> Tensor:
    return stack.all_numbers(codes).sub_(stack.target).div_(unit)
