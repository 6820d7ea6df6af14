"""AdaRound: up or down, learned by gradient descent on a relaxation."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.quantization.grid import level_table, places, places_of_levels
from mpq.rounding._base import StackSolver, WeightRounding
from mpq.rounding.diagonal_blocks import diagonal, product
from mpq.rounding.gptq import check_damping
from mpq.rounding.objective import Objective, largest
from mpq.rounding.stack import Stack

STRETCH: Final = (-0.1, 1.1)
"""What the sigmoid reaches from and to, before it is cut to 0 and 1."""
WEIGHT: Final = (0.01, 1.0)
"""Of the regularizer, at first and at last: from 1/4 on no share by itself stays inside."""
DECAY: Final = (0.9, 0.95)
"""Of Adam's mean slope and mean square (Kingma and Ba 2014, arXiv:1412.6980)."""


@final
@dataclass(frozen=True)
class AdaRound(WeightRounding):
    r"""Adaptive rounding (Nagel et al. 2020, arXiv:2004.10568), on a quadratic form.

    A weight lies between two neighbours on its grid, a share :math:`h` of the gap :math:`g` away
    from the nearer. Adam moves the shares so that the error of the row falls, while a regularizer
    drives them to 0 or 1:

    .. math:: d^T H d + \lambda \sum_k H_{kk} g_k^2 (1 - |2 h_k - 1|^\beta), \quad
        h = \mathrm{clip}(1.2\,\sigma(v) - 0.1, 0, 1)

    Where we depart from the paper: the error is the quadratic form of the damped second moment,
    whose slope is exact, and not that of a batch. Neighbours of floating-point formats are gaps
    apart that differ. The regularizer is in units of what a gap costs by itself, so that one weight
    suits all layers and bits; :math:`\beta` stays 2 and :math:`\lambda` rises from 0.01 to 1,
    where the paper has a fixed weight and :math:`\beta` falls from 20 to 2: the form is convex at
    first, and shares are decided one after another. A row that comes out worse than to nearest, by
    this form, is left to nearest. Scales stay.

    No weight goes further than to a neighbour. Where variances of inputs differ much, GPTQ, which
    lets weights of small inputs go further, has the smaller error.

    Every iteration is a product with ``H``, which is about what the whole of GPTQ takes; a dozen
    copies of a stack of rows are held.

    Args:
        damping: As in GPTQ.
        iterations: Steps of Adam.
        learning_rate: Of Adam.
    """

    name: ClassVar[str] = "adaround"
    summary: ClassVar[str] = "up or down, learned by gradient descent: slow"

    damping: float = 0.01
    iterations: int = 500
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        check_damping(self.name, self.damping)
        if self.iterations < 1 or not 0 < self.learning_rate <= 10:
            raise InputError(
                f"{self.name} needs iterations from 1 on and a learning_rate above 0 and at most "
                f"10; got {self.iterations} and {self.learning_rate}"
            )

    def prepared(self, moment: Tensor) -> StackSolver:
        """See ``WeightRounding.prepared``."""
        return _Learned(self, Objective.of(moment, self.damping))


@dataclass(frozen=True, eq=False)
class _Learned(StackSolver):
    options: AdaRound
    objective: Objective

    def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
        near = stack.nearest()
        far = beyond(stack, near)
        shares = self._shares(Relaxation.of(self.objective, stack, near, far))
        learned = torch.where(shares > 0.5, far, near)
        unit = largest(stack)
        before, after = (self.objective.of_codes(stack, x, unit) for x in (near, learned))
        return torch.where((after < before)[..., None, :], learned, near), stack

    def _shares(self, relaxation: "Relaxation") -> Tensor:
        """``[..., K, R]`` after all steps of Adam."""
        count, (first, last) = self.options.iterations, WEIGHT
        logits = logits_of(relaxation.start)
        mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
        for step in range(count):
            slope = relaxation.slope(logits, first * (last / first) ** (step / count))
            mean.lerp_(slope, 1 - DECAY[0])
            square.mul_(DECAY[1]).addcmul_(slope, slope, value=1 - DECAY[1])
            size = (square / (1 - DECAY[1] ** (step + 1))).sqrt_().add_(1e-8)
            rate = self.options.learning_rate / (1 - DECAY[0] ** (step + 1))
            logits.addcdiv_(mean, size, value=-rate)
        return shares_of(logits)


@final
@dataclass(frozen=True, eq=False)
class Relaxation:
    """Rows whose weights may lie anywhere between two neighbours, in units of their widest gap.

    Args:
        form: ``[..., K, k]`` of the error, as in ``Objective``.
        rest: ``[..., K, R]`` error of the nearer neighbours.
        gap: ``[..., K, R]`` from these to the others; 0 beyond the ends of the grid.
    """

    form: Tensor
    rest: Tensor
    gap: Tensor

    @classmethod
    def of(cls, objective: Objective, stack: Stack, near: Tensor, far: Tensor) -> Self:
        """Between codes ``[..., K, R]``."""
        numbers = stack.all_numbers(near)
        gap = stack.all_numbers(far) - numbers
        widest = gap.abs().amax(dim=-2, keepdim=True)
        unit = torch.where(widest > 0, widest, torch.ones_like(widest))
        return cls(objective.form, (numbers - stack.target) / unit, gap / unit)

    @property
    def start(self) -> Tensor:
        """``[..., K, R]`` the shares at which weights are what they were."""
        return torch.where(self.gap != 0, -self.rest / self.gap, 0.0)

    def slope(self, logits: Tensor, weight: float) -> Tensor:
        """``[..., K, R]`` derivative of error and regularizer, of some weight, by the logits."""
        shares = shares_of(logits)
        slope = product(self.form, self.rest + self.gap * shares).mul_(2 * self.gap)
        cost = diagonal(self.form)[..., None] * self.gap.square()
        slope.addcmul_(cost, 2 * shares - 1, value=-4 * weight)
        low, high = STRETCH
        sigmoid = logits.sigmoid()
        is_inside = (shares > 0) & (shares < 1)
        return slope.mul_(is_inside).mul_(sigmoid * (1 - sigmoid)).mul_(high - low)


def shares_of(logits: Tensor) -> Tensor:
    """The rectified sigmoid: 0 to 1, both of which it reaches."""
    low, high = STRETCH
    return logits.sigmoid().mul_(high - low).add_(low).clamp_(0, 1)


def logits_of(shares: Tensor) -> Tensor:
    """The inverse of ``shares_of``, a little inside: at 0 and 1 the slope is cut off."""
    low, high = STRETCH
    return ((shares.clamp(0.01, 0.99) - low) / (high - low)).logit()


def beyond(stack: Stack, near: Tensor) -> Tensor:
    """The codes on the other side of the target, next to the nearest ``[..., K, R]``.

    Where the target is beyond the ends of the grid, the nearest itself.
    """
    is_above = stack.target >= stack.all_numbers(near)
    if stack.number is None:
        step = torch.where(is_above, 1.0, -1.0).to(near)  # not the default dtype
        if stack.signs is not None:
            step = torch.where(stack.signs, 2 * step, step)
        return stack.nearest(stack.units(near + step) * stack.scale[..., stack.group_of, :])
    if stack.levels is not None:
        codebooks = stack.levels.mT.contiguous()
        found = places_of_levels(near.mT, codebooks) + torch.where(is_above.mT, 1, -1)
        return codebooks.gather(-1, found.clamp(0, codebooks.shape[-1] - 1)).mT
    levels, _ = level_table(stack.number.levels, near.device)
    found = places(near, stack.number) + torch.where(is_above, 1, -1)
    return levels[found.clamp(0, len(levels) - 1)]
