"""GPTQ: one input after another, each one's error made good by those that follow."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import StackSolver, WeightRounding
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

    def solve(self, stack: Stack) -> tuple[Tensor, Tensor]:
        return self.sequential.codes(stack), stack.scale


@final
@dataclass(frozen=True, eq=False)
class Sequential:
    """The factorization that says what an input's error costs those that follow.

    Args:
        order: ``[K]`` inputs, in the order in which they are rounded.
        upper: ``[K, K]`` float32, upper Cholesky factor of the form's inverse in that order.
    """

    order: Tensor
    upper: Tensor

    @classmethod
    def of(cls, objective: Objective, activation_order: bool = True) -> Self:
        """Of a damped form, which can be inverted.

        Raises:
            InputError: If it cannot, as a form that is not positive semidefinite was damped little.
        """
        count = len(objective.form)
        order = torch.arange(count)
        if activation_order:
            # Stable, as equal inputs must not come in another order elsewhere.
            order = objective.diagonal.argsort(descending=True, stable=True)
        # In double precision: two factorizations of what is close to singular.
        ordered = objective.form[order][:, order].double()
        lower, failed_at = torch.linalg.cholesky_ex(ordered)
        if failed_at:
            raise InputError(
                "the second moment of a layer's inputs is not positive semidefinite as far as it "
                "was damped; give the rounding a larger damping, such as 0.01"
            )
        inverse = torch.cholesky_inverse(lower)
        return cls(order, torch.linalg.cholesky(inverse, upper=True).float())

    def codes(self, stack: Stack) -> Tensor:
        """``[K, R]`` codes of a stack, at its scales."""
        left, found = stack.target[self.order], torch.empty_like(stack.target)
        for start in range(0, len(left), BLOCK):
            stop = min(start + BLOCK, len(left))
            errors = self._block(stack, left, found, start, stop)
            left[stop:].addmm_(self.upper[start:stop, stop:].t(), errors, alpha=-1.0)
        return found

    def _block(self, stack: Stack, left: Tensor, found: Tensor, start: int, stop: int) -> Tensor:
        """Rounds some inputs in place; ``[k, R]`` their errors, in units of the factor."""
        inputs = self.order[start:stop]
        cells = stack.cells(inputs)
        codes = left.new_empty(stop - start, left.shape[1])
        errors = torch.empty_like(codes)
        for at, place in enumerate(range(start, stop)):
            codes[at] = cells.codes(left[place], at)
            error = (left[place] - cells.numbers(codes[at], at)) / self.upper[place, place]
            errors[at] = error
            following = self.upper[place, place + 1 : stop]
            left[place + 1 : stop].addr_(following, error, alpha=-1.0)
        found[inputs] = codes
        return errors
