"""AdaRound: whether each weight goes up or down, learned for all of a row together."""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.quantization.formats import NumberFormat
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.gptq import check_damping
from mpq.rounding.objective import Objective
from mpq.rounding.stack import Stack

STRETCH: Final = (-0.1, 1.1)
"""Ends of the sigmoid before it is cut to 0 and 1, as in the paper."""
BETA: Final = (20.0, 2.0)
"""Exponent of the regularizer, from its first to its last step, as in the paper."""
WARM_UP: Final = 0.2
"""Share of the steps without the regularizer, as in the paper."""


@final
@dataclass(frozen=True)
class AdaRound(WeightRounding):
    r"""Up or down, by gradient descent on a relaxation (Nagel et al. 2020, arXiv:2004.10568).

    Every weight lies between two neighbours of its grid; how far up it goes is :math:`h`, a sigmoid
    of :math:`v` that is stretched to -0.1 and 1.1 and cut to 0 and 1. Adam minimizes, over all
    :math:`v` of a row,

    .. math:: d^T H d + \lambda \textstyle\sum_k H_{kk} (1 - |2 h_k - 1|^\beta)

    with :math:`d` in steps of the grid, :math:`H` the damped second moment in units of its mean
    diagonal, and :math:`\beta` annealed from 20 to 2 by half a cosine. In the end :math:`h` is
    rounded. Where that is no better than rounding to nearest, as a row of the weight, that is kept.

    Departures: the squared error of outputs is computed from the second moment instead of batches,
    so that nothing is drawn at random and activation functions are not looked at; what is undecided
    costs each input in proportion to its own second moment, so that :math:`\lambda` has no unit;
    fewer and larger steps than the paper's 10,000. Scales are those that rounding to nearest starts
    from. Of floating-point formats the neighbours are those of their own uneven grid.

    Takes a product ``[K, K] [K, R]`` a step, hundreds of times that of GPTQ.

    Args:
        damping: As in GPTQ.
        num_steps: Of Adam.
        learning_rate: Of Adam.
        regularizer: :math:`\lambda`.
    """

    name: ClassVar[str] = "adaround"
    summary: ClassVar[str] = "up or down, learned for all weights of a row together"

    damping: float = 0.01
    num_steps: int = 500
    learning_rate: float = 0.1
    regularizer: float = 0.3

    def __post_init__(self) -> None:
        check_damping(self.name, self.damping)
        if self.num_steps < 1:
            raise InputError(f"{self.name} needs num_steps from 1 on; got {self.num_steps}")
        if not 0 < self.learning_rate <= 1e3 or not 0 <= self.regularizer <= 1e6:
            raise InputError(
                f"{self.name} needs a learning_rate above 0 and a regularizer from 0 on; got "
                f"{self.learning_rate}, {self.regularizer}"
            )

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return _Learner(self, Objective.of(moment, self.damping))


@dataclass(frozen=True, eq=False)
class _Learner(StackSolver):
    options: AdaRound
    objective: Objective

    def solve(self, stack: Stack) -> tuple[Tensor, Tensor]:
        nearest = stack.nearest()
        down, up = neighbours(stack)
        found = torch.where(self._shares(stack, down, up) >= 0.5, up, down)
        errors, of_nearest = (
            self.objective.of_errors(stack.all_numbers(codes) - stack.target)
            for codes in (found, nearest)
        )
        return torch.where(errors < of_nearest, found, nearest), stack.scale

    def _shares(self, stack: Stack, down: Tensor, up: Tensor) -> Tensor:
        """``[K, R]`` how far up every weight goes, from 0 to 1."""
        scale = stack.scale[stack.group_of]
        # Of one row, so that Adam's steps mean the same for groups with large and small scales.
        unit = stack.scale.mean(dim=0)
        gap = (up - down) * scale / unit
        start = (stack.numbers(down, torch.arange(stack.num_inputs)) - stack.target) / unit
        share = torch.where(gap > 0, -start / gap.clamp_min(torch.finfo().tiny), 0.0).clamp(0, 1)
        low, high = STRETCH
        hidden = torch.logit((share - low) / (high - low))
        mean, square = torch.zeros_like(hidden), torch.zeros_like(hidden)
        for step in range(1, self.options.num_steps + 1):
            sigmoid = hidden.sigmoid()
            stretched = sigmoid * (high - low) + low
            share = stretched.clamp(0.0, 1.0)
            slope = 2.0 * gap * (self.objective.form @ (start + share * gap))
            slope += self._pull(share, step)
            # Beyond the ends the derivative is 0, as in the paper: what has been decided stays.
            inside = (stretched > 0.0) & (stretched < 1.0)
            slope *= inside * (high - low) * sigmoid * (1.0 - sigmoid)
            hidden -= self._adam(slope, mean, square, step)
        return share

    def _pull(self, share: Tensor, step: int) -> Tensor:
        """``[K, R]`` derivative of the regularizer."""
        done = step / self.options.num_steps
        if done <= WARM_UP:
            return torch.zeros_like(share)
        first, last = BETA
        along = cos(pi * (done - WARM_UP) / (1.0 - WARM_UP))
        beta = last + 0.5 * (first - last) * (1.0 + along)
        side = 2.0 * share - 1.0
        weight = self.options.regularizer * self.objective.diagonal[:, None]
        return -2.0 * beta * weight * side.abs() ** (beta - 1.0) * side.sign()

    def _adam(self, slope: Tensor, mean: Tensor, square: Tensor, step: int) -> Tensor:
        """The step to take (Kingma and Ba 2014, arXiv:1412.6980); moments change in place."""
        mean.lerp_(slope, 0.1)
        square.lerp_(slope * slope, 0.001)
        first, second = mean / (1.0 - 0.9**step), square / (1.0 - 0.999**step)
        return self.options.learning_rate * first / (second.sqrt() + 1e-8)


def neighbours(stack: Stack) -> tuple[Tensor, Tensor]:
    """Codes ``[K, R]`` next below and next above the target; equal where it is beyond the grid."""
    units = stack.target / stack.scale[stack.group_of]
    if stack.number is None:
        below = units.floor() + stack.zero_point[stack.group_of]
        down, up = (
            torch.minimum(torch.maximum(codes, stack.low), stack.high)
            for codes in (below, below + 1.0)
        )
        return down, up
    levels = float_levels(stack.number)
    # The first level above, of which there is none beyond the largest.
    above = torch.bucketize(units, levels, right=True)
    last = len(levels) - 1
    return levels[(above - 1).clamp(0, last)], levels[above.clamp(0, last)]


def float_levels(number: NumberFormat) -> Tensor:
    """Every number of a floating-point format of up to 8 bits, ascending, 0 once; float32.

    >>> from mpq.quantization.formats import NUMBER_FORMATS
    >>> float_levels(NUMBER_FORMATS["fp4_e2m1"]).tolist()[7:]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    steps = 2**number.mantissa_bits
    exponents = range(number.min_exponent, number.min_exponent + 2**number.exponent_bits)
    normal = [(1 + k / steps) * 2.0**e for e in exponents for k in range(steps)]
    subnormal = [k / steps * 2.0**number.min_exponent for k in range(steps)]
    positive = torch.tensor([x for x in subnormal + normal if x <= number.max_value])
    return torch.cat([-positive.flip(0)[:-1], positive])
