"""Number formats as values: how a weight and an activation are stored.

Spelling, for example ``w4g128a8``:

===========  =======================================================================
``w4``       weight: ``2`` to ``8`` is an integer format, ``16`` is fp16, ``32`` is fp32, or a
             name: ``fp8_e4m3`` (short ``fp8``), ``fp8_e5m2``, ``fp4_e2m1`` (short ``fp4``),
             ``bf16``
``t``        one scale for the whole weight tensor (default: one per output channel)
``z``        affine, with a zero point (default for weights: symmetric)
``g128``     one scale for every 128 consecutive weights of an output channel
``a8``       activation: as for weights; without this part the activation stays fp32
``s``        symmetric (default for integer activations: affine, with a zero point)
``d``        dynamic: one scale per token, found while running (default: one static scale per
             tensor, calibrated)
===========  =======================================================================

A name alone stands for both: ``fp8``, ``bf16``, ``fp32``, ``int8`` (which is ``w8a8``).
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Self, final

from mpq.errors import PrecisionError

SCALE_BITS = 32
"""Bits of one scale, where a tensor or a channel has one."""
GROUP_SCALE_BITS = 16
"""Bits of one scale, where a group of weights has one (fp16, as GPTQ and AWQ store it)."""


@final
@dataclass(frozen=True)
class NumberFormat:
    """How one number is stored.

    Args:
        name: Such as ``int4`` or ``fp8_e4m3``.
        bits: Bits per number, without scales.
        is_float: Whether it has an exponent.
        max_value: Largest magnitude of a floating-point format; unused for integers.
    """

    name: str
    bits: int
    is_float: bool = False
    max_value: float = 0.0

    @property
    def needs_scale(self) -> bool:
        """Whether values must be scaled into its range: true of everything below 16 bits."""
        return self.bits < 16


NUMBER_FORMATS = {
    number.name: number
    for number in (
        *(NumberFormat(f"int{bits}", bits) for bits in range(2, 9)),
        NumberFormat("fp4_e2m1", 4, True, 6.0),
        NumberFormat("fp8_e4m3", 8, True, 448.0),
        NumberFormat("fp8_e5m2", 8, True, 57344.0),
        NumberFormat("bf16", 16, True, 3.3895e38),
        NumberFormat("fp16", 16, True, 65504.0),
        NumberFormat("fp32", 32, True, 3.4028e38),
    )
}
"""Every number format, by name."""

_SHORT = {"fp8": "fp8_e4m3", "fp4": "fp4_e2m1", "16": "fp16", "32": "fp32"}
_SHORT |= {str(bits): f"int{bits}" for bits in range(2, 9)}
_LONG_TO_DIGITS = {"fp16": "16", "fp32": "32"} | {f"int{bits}": str(bits) for bits in range(2, 9)}


class Granularity(Enum):
    """How many numbers share a scale."""

    NONE = "none"
    TENSOR = "per_tensor"
    CHANNEL = "per_channel"
    GROUP = "per_group"
    TOKEN = "per_token"


@final
@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored: a number format and its scales.

    Args:
        number: The number format.
        granularity: How many numbers share a scale; ``NONE`` for 16 bits and more.
        symmetric: Whether zero is the middle of the range (no zero point).
        group_size: Numbers per scale, for ``Granularity.GROUP`` only.

    Raises:
        PrecisionError: If the parts contradict each other.
    """

    number: NumberFormat
    granularity: Granularity
    symmetric: bool = True
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.number.needs_scale == (self.granularity is Granularity.NONE):
            need = "needs a scale" if self.number.needs_scale else "has no scale"
            raise PrecisionError(f"{self.number.name} {need}; got {self.granularity.value!r}")
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise PrecisionError("a group size goes with granularity 'per_group', and only there")
        if self.group_size is not None and self.group_size < 1:
            raise PrecisionError(f"a group has at least 1 weight; got {self.group_size}")
        if self.number.is_float and not self.symmetric:
            raise PrecisionError(f"{self.number.name} is symmetric: it has no zero point")

    @property
    def is_exact(self) -> bool:
        """Whether the tensor is left as it is: fp32 stands for the original numbers."""
        return self.number.name == "fp32"

    def num_scales(self, num_elements: int, num_channels: int) -> int:
        """How many scales a weight of so many elements and output channels has."""
        if self.granularity is Granularity.GROUP:
            assert self.group_size is not None
            per_channel = num_elements // num_channels
            return num_channels * -(-per_channel // self.group_size)
        return {Granularity.TENSOR: 1, Granularity.CHANNEL: num_channels}.get(self.granularity, 0)

    def stored_bits(self, num_elements: int, num_channels: int = 1) -> int:
        """Bits in memory, scales and zero points included.

        >>> Precision.parse("w4g32").weight.stored_bits(64 * 64, 64) / 64**2
        4.5
        """
        is_group = self.granularity is Granularity.GROUP
        per_scale = GROUP_SCALE_BITS if is_group else SCALE_BITS
        if not self.symmetric:
            per_scale += self.number.bits
        scales = self.num_scales(num_elements, num_channels)
        return num_elements * self.number.bits + scales * per_scale


_NUMBER = r"fp8_e4m3|fp8_e5m2|fp8|fp4_e2m1|fp4|bf16|fp16|fp32|int[2-8]|16|32|[2-8]"
_SPELLING = re.compile(
    rf"w(?P<weight>{_NUMBER})(?P<tensor>t?)(?P<zero>z?)(?:g(?P<group>\d+))?"
    rf"(?:a(?P<activation>{_NUMBER})(?P<symmetric>s?)(?P<dynamic>d?))?"
)
_HELP = (
    "write w<bits>a<bits> such as w4a8 (2 to 8, 16 or 32 bits), w4g128a16 for groups of 128, "
    "w8a8d for dynamic activations, or one of int2 to int8, fp4, fp8, fp8_e5m2, bf16, fp16, fp32"
)


@final
@dataclass(frozen=True)
class Precision:
    """The formats of one layer's weight and of its input activation.

    >>> Precision.parse("w4g128a16")
    Precision('w4g128a16')
    >>> str(Precision.parse("int8")), str(Precision.parse("w16a16")), str(Precision.parse("w4"))
    ('w8a8', 'fp16', 'w4a32')
    """

    weight: TensorFormat
    activation: TensorFormat

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the spelling that the head of this module describes.

        Raises:
            PrecisionError: If the text is not a precision.
        """
        spelling = text.strip().lower()
        name = _SHORT.get(spelling, spelling)
        if name in NUMBER_FORMATS and not spelling.isdigit():
            spelling = f"w{name}a{name}"
        match = _SPELLING.fullmatch(spelling)
        if match is None:
            raise PrecisionError(f"{text!r} is not a precision: {_HELP}")
        return cls(_weight_format(match), _activation_format(match))

    @cached_property
    def _spelling(self) -> str:
        number = self.weight.number
        if self == Precision.parse(f"w{number.name}a{number.name}") and number.is_float:
            return number.name
        return _spell_weight(self.weight) + _spell_activation(self.activation)

    def __str__(self) -> str:
        return self._spelling

    def __repr__(self) -> str:
        return f"Precision({self._spelling!r})"


def _number(token: str) -> NumberFormat:
    return NUMBER_FORMATS[_SHORT.get(token, token)]


def _weight_format(match: re.Match[str]) -> TensorFormat:
    number, group = _number(match["weight"]), match["group"]
    if match["tensor"] and group:
        raise PrecisionError(f"{match[0]!r}: 't' (one scale) and 'g{group}' exclude each other")
    if not number.needs_scale:
        _refuse_flags(match, number, "tensor", "zero", "group")
        return TensorFormat(number, Granularity.NONE)
    if group:
        granularity = Granularity.GROUP
    else:
        granularity = Granularity.TENSOR if match["tensor"] else Granularity.CHANNEL
    return TensorFormat(number, granularity, not match["zero"], int(group) if group else None)


def _activation_format(match: re.Match[str]) -> TensorFormat:
    number = _number(match["activation"] or "fp32")
    if not number.needs_scale:
        _refuse_flags(match, number, "symmetric", "dynamic")
        return TensorFormat(number, Granularity.NONE)
    granularity = Granularity.TOKEN if match["dynamic"] else Granularity.TENSOR
    return TensorFormat(number, granularity, number.is_float or bool(match["symmetric"]))


def _refuse_flags(match: re.Match[str], number: NumberFormat, *flags: str) -> None:
    given = [flag for flag in flags if match[flag]]
    if given:
        raise PrecisionError(f"{match[0]!r}: {number.name} has no scale, so no {given[0]!r} either")


def _spell_weight(weight: TensorFormat) -> str:
    number = weight.number.name
    text = "w" + _LONG_TO_DIGITS.get(number, number)
    text += "t" if weight.granularity is Granularity.TENSOR else ""
    text += "" if weight.symmetric else "z"
    return text + (f"g{weight.group_size}" if weight.group_size else "")


def _spell_activation(activation: TensorFormat) -> str:
    number = activation.number
    text = "a" + _LONG_TO_DIGITS.get(number.name, number.name)
    text += "s" if activation.symmetric and not number.is_float else ""
    return text + ("d" if activation.granularity is Granularity.TOKEN else "")


ORIGINAL = Precision.parse("fp32")
"""The network as it came: fp32 stands for the original numbers, whatever their type."""
