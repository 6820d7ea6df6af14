"""What a rounding is judged by: the squared error of a layer's outputs, as a quadratic form."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from mpq.rounding.stack import Stack


@final
@dataclass(frozen=True, eq=False)
class Objective:
    r"""The squared error of outputs, :math:`d^T H d` for an error ``d`` of a weight's row.

    Args:
        form: ``[K, K]`` float32: the second moment of the inputs, in units of the mean of its
            diagonal, damped.
    """

    form: Tensor

    @classmethod
    def of(cls, moment: Tensor, damping: float) -> Self:
        """Of a second moment, whose diagonal is raised by a share of its mean.

        The damping is what few examples do not say: all of an error counts a little, and the form
        can be inverted. Inputs that are always 0 count by it alone.

        Args:
            moment: ``[K, K]``, symmetric and positive semidefinite.
            damping: Share of the mean of the diagonal, above 0.
        """
        mean = float(moment.diagonal().double().mean())
        # Of a layer that only reads zeros every rounding is as good: all weights count the same.
        unit, raised = (mean, damping) if mean > 0 else (1.0, 1.0)
        # In these units squared errors of small inputs do not vanish in float32.
        form = moment.float() / unit
        form.diagonal().add_(raised)
        return cls(form)

    @property
    def diagonal(self) -> Tensor:
        """``[K]``, positive."""
        return self.form.diagonal()

    def of_errors(self, errors: Tensor) -> Tensor:
        """``[R]`` for errors ``[K, R]``, a column per row of the weight."""
        return ((self.form @ errors) * errors).sum(dim=0)

    def of_codes(self, stack: Stack, codes: Tensor) -> Tensor:
        """``[R]`` for codes ``[K, R]``, in units of the squared largest weight of each row."""
        return self.of_errors(_errors(stack, codes))

    def of_inputs(self, stack: Stack, codes: Tensor) -> Tensor:
        """``[K, R]`` of each code alone, as if inputs did not hang together; in the same units."""
        return _errors(stack, codes).square_().mul_(self.diagonal[:, None])


def _errors(stack: Stack, codes: Tensor) -> Tensor:
    """``[K, R]`` in units of the largest weight of each row."""
    # Squares of very large or small weights are no float32.
    unit = stack.target.abs().amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return (stack.all_numbers(codes) - stack.target).div_(unit)
