"""Scales as they are after storing them, and what those of a weight have in common."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self, final

import torch
from torch import Tensor

from mpq.quantization.scale_formats import SCALE_FORMATS, ScaleFormat

LARGEST_CODE: Final = 127
"""Of double-quantized scales, whose codes are as many below the mean as above."""
ROOM: Final = 0.25
"""Share of the mean by which second scales reach further than the scales that they are made of."""


@final
@dataclass(frozen=True, eq=False)
class SecondScales:
    r"""What the scales of one weight are stored relative to, found once for all of them.

    Scales that are fitted to codes later are stored relative to the same, each by itself, so that
    no scale depends on another one. So there is some room beyond the scales that came first.

    In fp8 (e4m3) they are multiples of one power of two for the whole weight, as those of NVFP4: so
    a product of both is exact in float32. Double quantization (Dettmers et al. 2023, QLoRA,
    arXiv:2305.14314) takes the mean of all scales off, and gives 256 of the rest an fp32 scale:

    .. math:: s = \mu + q \, d_j, \quad q \in \{-127, ..., 127\}, \quad
        d_j = \frac{\max_{i \in j} |s_i - \mu| + \mu / 4}{127}

    Where we depart: ``q`` is an integer, where QLoRA has a float of 8 bits, as integers are nearer
    to scales that lie around their mean; a quarter of the mean is room for scales that change; and
    none becomes 0 or negative.

    Args:
        step: The second scale of every scale, in the scales' shape, float32.
        mean: The mean of all scales, in the same shape; 0 where it is not taken off.
    """

    step: Tensor
    mean: Tensor

    @classmethod
    def of(cls, scale: Tensor, told: ScaleFormat) -> Self:
        """Of the scales ``[O * G]`` of a weight, channel by channel, float32."""
        if not told.has_mean:
            return cls(_power_of_two(scale).expand_as(scale), torch.zeros_like(scale))
        mean = scale.double().mean().float()
        apart = (scale - mean).abs()
        missing = -len(apart) % told.block
        blocks = torch.nn.functional.pad(apart, (0, missing)).view(-1, told.block)
        steps = (blocks.amax(dim=1) + ROOM * mean) / LARGEST_CODE
        return cls.expanded(steps, mean[None], told, scale)

    @classmethod
    def expanded(cls, steps: Tensor, mean: Tensor, told: ScaleFormat, scale: Tensor) -> Self:
        """Of what is stored: a step per block of scales, and one mean or none.

        Args:
            steps: ``[num_second_scales]``.
            mean: ``[1]``, or ``[0]`` where there is none.
            told: The type of the scales.
            scale: Whose shape is given to both.
        """
        block = told.block or scale.numel()
        step = steps.repeat_interleave(block)[: scale.numel()].view_as(scale)
        whole = mean if len(mean) else torch.zeros_like(steps[:1])
        return cls(step, whole.expand(scale.numel()).view_as(scale))

    def stored_parts(self, told: ScaleFormat) -> tuple[Tensor, Tensor]:
        """What ``expanded`` takes."""
        steps = self.step.flatten()[:: told.block or self.step.numel()]
        return steps, self.mean.flatten()[: int(told.has_mean)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Both parts changed alike, as their scales are."""
        return replace(self, step=change(self.step), mean=change(self.mean))

    def rounded(self, scale: Tensor, told: ScaleFormat) -> Tensor:
        """Scales, in the shape of both, as they are after storing them."""
        if not told.has_mean:
            return _cast(scale / self.step, told) * self.step
        codes = ((scale - self.mean) / self.step).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        found = self.mean + codes * self.step
        # A scale of 0 makes codes of nothing: the smallest one above it, at most a step further.
        lowest = torch.floor(-self.mean / self.step) + 1
        return torch.where(found > 0, found, self.mean + lowest * self.step)


def stored_scale(scale: Tensor, scale_type: str, second: SecondScales | None = None) -> Tensor:
    """Scales as they are after storing them, with their signs, in float32; any shape.

    Args:
        scale: Float32.
        scale_type: One of ``SCALE_FORMATS``.
        second: In the same shape, where the type has second scales.
    """
    told = SCALE_FORMATS[scale_type]
    if told.second_scale:
        assert second is not None
        return second.rounded(scale, told)
    if told.multiplier_bits:
        return _dyadic(scale, told)
    return scale if told.torch_dtype == "float32" else _cast(scale, told)


def _cast(scale: Tensor, told: ScaleFormat) -> Tensor:
    # Before the cast, which makes 0 of smaller numbers and infinity of larger ones.
    return _within(scale, told).to(getattr(torch, told.torch_dtype)).float()


def _dyadic(scale: Tensor, told: ScaleFormat) -> Tensor:
    """``m / 2^e`` with the largest ``m`` that its bits hold, as HAWQ-V3 (arXiv:2011.10680)."""
    digits = told.multiplier_bits - 1  # without the sign
    within = _within(scale, told)
    if digits >= 24:  # all that float32 has
        return within
    mantissa, exponent = torch.frexp(within)  # 0.5 <= m < 1
    multiplier = torch.ldexp(mantissa, torch.tensor(digits)).round()
    return torch.ldexp(multiplier, exponent - digits)


def _within(scale: Tensor, told: ScaleFormat) -> Tensor:
    return scale.abs().clamp(told.smallest, told.largest).copysign(scale)


def _power_of_two(scale: Tensor) -> Tensor:
    """The one at which the largest scale is in the upper half of fp8's range, but for an octave."""
    largest = scale.abs().amax() if scale.numel() else scale.new_ones(())
    mantissa, exponent = torch.frexp(largest)
    # 448 = 0.875 * 2^9: the octave is room for scales that grow.
    shift = exponent - 8 + (mantissa > 0.875).int()
    return torch.ldexp(torch.ones_like(largest), shift.clamp(-117, 119))
