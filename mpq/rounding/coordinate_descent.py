"""Coordinate descent on codes and scales, from the best of several starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.rounding._base import NUMBERS_AT_ONCE, StackSolver, WeightRounding
from mpq.rounding.diagonal_blocks import add_product, blocks, product, quadratic
from mpq.rounding.gptq import BLOCK, Sequential, check_damping, subtract, subtract_outer
from mpq.rounding.objective import Objective, largest
from mpq.rounding.stack import Stack

FACTORS: Final = (1.0, 0.7, 0.78, 0.86, 0.93, 1.07, 1.15)
"""What the scales that rounding to nearest starts from are multiplied by, as starts."""


@final
@dataclass(frozen=True)
class CoordinateDescent(WeightRounding):
    """GPTQ at several scales, the best one of each row, and then scales and codes in turn.

    A row's error is the quadratic form of the damped second moment. Codes of integers around 0
    reach one further below it than above, so that a negative scale can suit a row better: every
    scale has the sign by which rounding to nearest errs less, at the best of seven factors, by the
    diagonal of the form. GPTQ (arXiv:2210.17323) starts at the same seven; then scales are refitted
    in closed form, given the codes, and every code is set to its best value given all others, sweep
    by sweep, as QuantEase does it (Behdin et al. 2023, arXiv:2309.01885). The best that was met is
    kept: no row is worse than by rounding to nearest or by GPTQ, by this form.

    Scales that are powers of two, one that a whole weight shares, and levels of codebooks stay as
    they are. Zero points that are fractions are refitted with the scales of their groups.

    Args:
        damping: As in GPTQ.
        rounds: How often scales and codes take turns.
        sweeps: Over all codes, in each round.
        scales: Whether scales change at all.
        signs: Whether they may be negative, where what runs the network reads such scales.
    """

    name: ClassVar[str] = "coordinate-descent"
    summary: ClassVar[str] = "GPTQ at the best of seven scales, then codes and scales in turn"

    damping: float = 0.01
    rounds: int = 2
    sweeps: int = 2
    scales: bool = True
    signs: bool = True

    def __post_init__(self) -> None:
        check_damping(self.name, self.damping)
        if self.rounds < 0 or self.sweeps < 0:
            raise InputError(
                f"{self.name} needs rounds and sweeps from 0 on; got {self.rounds}, {self.sweeps}"
            )

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        objective = Objective.of(moment, self.damping)
        return _Descent(self, objective, Sequential.of(objective))


@dataclass(frozen=True, eq=False)
class _Descent(StackSolver):
    options: CoordinateDescent
    objective: Objective
    sequential: Sequential

    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        best = _Best(self.objective, stack)
        can_rescale = stack.can_rescale and self.options.scales
        starts = [stack]
        if can_rescale and stack.can_turn and self.options.signs:
            stack = turned(self.objective, stack)
            starts.append(stack)
        if can_rescale:
            starts += [stack.with_scale(stack.scale * factor) for factor in FACTORS[1:]]
        self._offer_gptq(best, starts)
        for _ in range(self.options.rounds):
            if can_rescale:
                best.offer(refitted(self.objective, best.stack, best.codes), best.codes)
            found = best.codes
            for _ in range(self.options.sweeps):
                found = swept(self.objective, best.stack, found)
                best.offer(best.stack, found)
        if can_rescale:
            best.offer(refitted(self.objective, best.stack, best.codes), best.codes)
        return best.codes, best.stack

    def _offer_gptq(self, best: "_Best", starts: Sequence[Stack]) -> None:
        """Side by side as far as memory goes: a step over few rows takes as long as over many."""
        at_once = max(1, NUMBERS_AT_ONCE // starts[0].target.numel())
        for first in range(0, len(starts), at_once):
            some = starts[first : first + at_once]
            if len(some) == 1:
                best.offer(some[0], self.sequential.codes(some[0]))
                continue
            together = Stack.side_by_side(some)
            unit = best.unit.repeat(*[1] * (best.unit.ndim - 1), len(some))
            codes, errors = self.sequential.codes_and_errors(together, unit)
            # [..., n, R], of each row the best start.
            chosen = errors.unflatten(-1, (len(some), -1)).argmin(dim=-2, keepdim=True)
            codes, scale, point = (
                t.unflatten(-1, (len(some), -1))
                .take_along_dim(chosen[..., None, :, :], dim=-2)
                .squeeze(-2)
                for t in (codes, together.scale, together.zero_point)
            )
            best.offer(some[0].with_scale(scale, point), codes)


class _Best:
    """The best codes and scales of every row that were offered; to nearest to begin with."""

    def __init__(self, objective: Objective, stack: Stack) -> None:
        self._objective, self.unit = objective, largest(stack)
        self.stack = stack
        self.codes = stack.nearest()
        self._errors = objective.of_codes(stack, self.codes, self.unit)

    def offer(self, stack: Stack, codes: Tensor) -> None:
        """Keeps what is better, row by row; of equals the first."""
        errors = self._objective.of_codes(stack, codes, self.unit)
        better = errors < self._errors
        self._errors = torch.where(better, errors, self._errors)
        better = better[..., None, :]
        self.codes = torch.where(better, codes, self.codes)
        # Scales that stay are not stored anew: some are powers of two that float16 does not hold.
        if stack is not self.stack:
            scale, point = (
                torch.where(better, new, old)
                for new, old in (
                    (stack.scale, self.stack.scale),
                    (stack.zero_point, self.stack.zero_point),
                )
            )
            self.stack = self.stack.with_scale(scale, point)


def turned(objective: Objective, stack: Stack) -> Stack:
    """The stack with a sign for every scale, the better one for rounding to nearest."""
    unit, least = largest(stack), torch.full_like(stack.scale, torch.inf)
    is_negative = torch.zeros_like(stack.scale, dtype=torch.bool)
    for factor in (f * s for s in (1.0, -1.0) for f in FACTORS):
        tried = stack.with_scale(stack.scale * factor)
        errors = objective.of_inputs(tried, tried.nearest(), unit)
        found = _by_group(stack, errors)
        is_negative = torch.where(found < least, tried.scale < 0, is_negative)
        least = torch.minimum(least, found)
    return stack.with_scale(torch.where(is_negative, -stack.scale, stack.scale))


def _by_group(stack: Stack, values: Tensor) -> Tensor:
    """``[..., S, R]`` sums of ``[..., K, R]`` over the inputs of each scale."""
    if stack.scale.shape[-2] == 1:
        return values.sum(dim=-2, keepdim=True)
    return torch.zeros_like(stack.scale).index_add_(-2, stack.group_of, values)


def refitted(objective: Objective, stack: Stack, codes: Tensor) -> Stack:
    """The stack with the best scales for given codes, of one group after another.

    Where zero points are fractions, with the best ones of these as well, given the scales.

    Args:
        objective: What is minimized.
        stack: Rows ``R``, scales ``[..., S, R]``.
        codes: ``[..., K, R]``.
    """
    form, units = objective.form, stack.units(codes)
    slope = product(form, stack.all_numbers(codes) - stack.target)  # [..., K, R]
    scale, point = stack.scale.clone(), stack.zero_point.clone()
    for group in range(scale.shape[-2]):
        inputs = (stack.group_of == group).nonzero()[:, 0]
        own, before = units[..., inputs, :], scale[..., group, :]
        change = _best_change(form, slope, own, inputs)
        # None changes its sign.
        is_same = (before + change).sign() == before.sign()
        change = torch.where(is_same, change, 0.0)
        scale[..., group, :] += change
        is_last = group + 1 == scale.shape[-2]
        if not is_last or stack.fractions_of is not None:
            add_product(slope, form, inputs, own * change[..., None, :])
        if stack.fractions_of is not None:
            # All numbers of a group move by the scale where its zero point moves by 1.
            own = -scale[..., group, :][..., None, :].expand_as(own)
            change = _best_change(form, slope, own, inputs)
            point[..., group, :] += change
            add_product(slope, form, inputs, own * change[..., None, :])
    return stack.with_scale(scale, point)


def _best_change(form: Tensor, slope: Tensor, own: Tensor, inputs: Tensor) -> Tensor:
    """``[..., R]`` what is best added to a parameter by which the numbers of some inputs change.

    Args:
        form: ``[..., K, k]``.
        slope: ``[..., K, R]`` of all numbers.
        own: ``[..., k, R]`` derivatives of the numbers of these inputs.
        inputs: ``[k]``.
    """
    curvature = quadratic(form, inputs, own)
    tiny = torch.finfo(torch.float32).tiny
    change = -(own * slope[..., inputs, :]).sum(dim=-2) / curvature.clamp_min(tiny)
    # Zeros have no scale to find.
    return torch.where(curvature > 0, change, 0.0)


def swept(objective: Objective, stack: Stack, codes: Tensor) -> Tensor:
    """Codes ``[..., K, R]`` after each was set to its best value, given the others, in order."""
    parts = (
        _swept(block, stack.of_inputs(part), codes[..., part, :])
        for part, block in blocks(objective.form)
    )
    return torch.cat(list(parts), dim=-2)


def _swept(form: Tensor, stack: Stack, codes: Tensor) -> Tensor:
    """The same of a form of one block: inputs of different blocks do not know of each other."""
    # Added to what a number is: what its slope says that it should be.
    steps = form.diagonal(dim1=-2, dim2=-1)[..., None].reciprocal().neg_()  # [..., K, 1]
    found = codes.clone()
    numbers = stack.all_numbers(found)
    slope = form @ (numbers - stack.target)  # [..., K, R]
    for start in range(0, stack.num_inputs, BLOCK):
        stop = min(start + BLOCK, stack.num_inputs)
        own = form[..., start:stop, start:stop]
        cells = stack.cells(torch.arange(start, stop)).one_by_one()
        changes = torch.empty_like(found[..., start:stop, :])
        rows = (t[..., start:stop, :].unbind(-2) for t in (numbers, slope, steps, found))
        for at, (cell, before, down, step, best, change) in enumerate(
            zip(cells, *rows, changes.unbind(-2), strict=True)
        ):
            best.copy_(cell.codes(torch.addcmul(before, down, step)))
            torch.sub(before, cell.numbers(best), out=change)
            subtract_outer(slope[..., start + at + 1 : stop, :], own[..., at, at + 1 :], change)
        # Those before it have had their turn.
        subtract(slope[..., stop:, :], form[..., stop:, start:stop], changes)
    return found
