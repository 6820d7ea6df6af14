"""Precisions as values: how a weight and an activation are stored.

Spelling, for example ``w4g128a8``:

===========  =======================================================================
``w4``       weight: a number format as ``mpq.quantization.formats`` spells it: ``2`` to ``8``
             is an integer format, ``16`` is fp16, ``32`` is fp32, or a name such as ``fp8`` or
             ``int16`` (``w8aint16``)
``t``        one scale for the whole weight tensor (default: one per output channel)
``z``        affine, with a zero point (default for weights: symmetric)
``zf``       affine, with a zero point that is a fraction, as HQQ has it (``z``: one of the codes)
``g128``     one scale for every 128 consecutive weights of an output channel
``sfp8``     what scales are stored in, a name of ``mpq.quantization.scale_formats`` (default: fp16
             for scales of groups, fp32 for others, unless a target says otherwise)
``+s0.5%``   beside the codes half a percent of the weights in fp16; ``+r16``: a product of rank 16
``a8``       activation: as for weights; without this part the activation stays fp32
``s``        symmetric (default for integer activations: affine, with a zero point)
``d``        dynamic: one scale per token, found while running (default: one static scale per
             tensor, calibrated)
``c``        static, one scale per input channel
``f``        static, the first position of a sequence with a scale of its own
===========  =======================================================================

A name alone stands for both: ``fp8``, ``bf16``, ``fp32``, ``int8`` (which is ``w8a8``). The
microscaling formats such as ``mxfp4`` are of weights alone and have their own groups: ``mxfp4`` is
``wmxfp4a32``. ``cb3``, which has levels for every channel and no scales, ``binary`` and ``ternary``
are of weights alone, too: ``wternaryg64a16``. ``4log2``, ``4twin`` and others of their families are
of inputs alone: ``4twin`` is ``w32a4twin``.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, cached_property
from typing import Self, final

from mpq._support.json_object import quoted
from mpq.errors import PrecisionError
from mpq.quantization.formats import NUMBER_FORMATS, shown_names, spelled_format, spellings
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.side_branch import BRANCH, SideBranch, parsed_branch

LEVEL_BITS = 16
"""Bits of one level of a codebook."""
SCALE_BITS = 32
"""Bits of one scale of a whole weight in a microscaling format."""
BLOCK_SCALE_BITS = 8
"""Bits of one scale of a microscaling format."""
LARGEST_GROUP = 2**31
"""No channel has as many weights."""
ORIGINAL_WEIGHTS = 32
"""How weights that stay as they came are written, after ``w``."""
_LONGEST = 20
"""Digits of a group's size that are read as a number at all."""


class Granularity(Enum):
    """How many numbers share a scale."""

    NONE = "none"
    TENSOR = "per_tensor"
    CHANNEL = "per_channel"
    GROUP = "per_group"
    TOKEN = "per_token"
    INPUT_CHANNEL = "per_input_channel"
    FIRST_APART = "first_position_apart"


@final
@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored: a number format and its scales.

    Args:
        number: The number format that every element is stored in.
        granularity: How many numbers share a scale; ``NONE`` for floats of 16 bits and more.
        symmetric: Whether zero is the middle of the range (no zero point).
        group_size: Numbers per scale, for ``Granularity.GROUP`` only.
        scale: What scales are stored in, one of ``SCALE_FORMATS``; ``None``: fp16 for those of
            groups and fp32 for others, or what a target's numerics say.
        float_zero: Whether the zero point is a fraction, and need not be one of the codes: it is
            stored in fp16 for groups, in fp32 for channels and tensors.
        branch: What a weight has beside its codes, which is added to what they stand for.

    Raises:
        PrecisionError: If the parts contradict each other.
    """

    number: NumberFormat
    granularity: Granularity
    symmetric: bool = True
    group_size: int | None = None
    scale: str | None = None
    float_zero: bool = False
    branch: SideBranch | None = None

    def __post_init__(self) -> None:
        if self.number.needs_scale == (self.granularity is Granularity.NONE):
            need = "needs a scale" if self.number.needs_scale else "has no scale"
            raise PrecisionError(f"{self.number.name} {need}; got {self.granularity.value!r}")
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise PrecisionError("a group size goes with granularity 'per_group', and only there")
        if self.group_size is not None and self.group_size < 1:
            raise PrecisionError(f"a group has at least 1 weight; got {self.group_size}")
        if self.group_size is not None and self.group_size > LARGEST_GROUP:
            raise PrecisionError(
                f"a group has at most {LARGEST_GROUP} weights; got {self.group_size}"
            )
        of_inputs = (Granularity.TOKEN, Granularity.INPUT_CHANNEL, Granularity.FIRST_APART)
        if self.number.is_for_inputs and self.granularity in of_inputs:
            raise PrecisionError(f"{self.number.name} has calibrated scales for the whole input")
        if self.number.is_float and not self.symmetric:
            raise PrecisionError(f"{self.number.name} is symmetric: it has no zero point")
        if self.number.is_microscaling and self.group_size != self.number.block:
            raise PrecisionError(f"{self.number.name} has groups of {self.number.block}")
        is_plain = (self.granularity, self.scale) == (Granularity.CHANNEL, None)
        if self.number.has_codebook and not is_plain:
            raise PrecisionError(
                f"{self.number.name} has levels for every output channel, and no scales: write "
                f"w{self.number.name}"
            )
        if self.float_zero and (self.symmetric or self.number.is_float or self.number.bits > 8):
            raise PrecisionError(
                f"zero points that are fractions are those of affine integers of up to 8 bits; got "
                f"{self.number.name}"
            )
        if self.scale is not None:
            self._check_scale(self.scale)
        if self.branch is not None and not self.number.needs_scale:
            raise PrecisionError(
                f"a branch stands beside codes, and {self.number.name} has none: leave "
                f"+{self.branch} out"
            )

    def _check_scale(self, scale: str) -> None:
        if scale not in SCALE_FORMATS:
            raise PrecisionError(
                f"scales are stored in one of {', '.join(SCALE_FORMATS)}; got {quoted(scale)}"
            )
        if not self.number.needs_scale or self.number.is_microscaling:
            raise PrecisionError(f"scales of {self.number.name} are not stored in {scale}")
        if self.granularity not in (Granularity.CHANNEL, Granularity.GROUP, Granularity.TENSOR):
            raise PrecisionError(f"scales that are found while running are not stored in {scale}")
        if self.granularity is Granularity.TENSOR and SCALE_FORMATS[scale].second_scale:
            raise PrecisionError(
                f"scales in {scale} have a second scale, and one of a whole weight needs none"
            )

    def __repr__(self) -> str:
        # Journals hold it: as it was before scales could be chosen, where they are not.
        parts = [self.number, self.granularity, self.symmetric, self.group_size]
        names = ["number", "granularity", "symmetric", "group_size"]
        told = [f"{name}={part!r}" for name, part in zip(names, parts, strict=True)]
        told += [] if self.scale is None else [f"scale={self.scale!r}"]
        told += [f"float_zero={self.float_zero}"] if self.float_zero else []
        told += [] if self.branch is None else [f"branch={self.branch!r}"]
        return f"TensorFormat({', '.join(told)})"

    @property
    def why_simulated(self) -> str:
        """Why what is in this format is computed with in the simulation alone; empty: not so."""
        if self.branch is not None:
            return f"no tool here has a branch beside a weight's codes (+{self.branch})"
        if self.number.is_for_inputs:
            return f"no kernel here multiplies codes of {self.number.name}"
        return {
            Granularity.INPUT_CHANNEL: "no kernel here has a scale for every input channel",
            Granularity.FIRST_APART: "no kernel here has a scale for the first position alone",
        }.get(self.granularity, "")

    @property
    def plain(self) -> "TensorFormat":
        """The format of the codes, without what stands beside them."""
        return self if self.branch is None else replace(self, branch=None)

    @property
    def is_exact(self) -> bool:
        """Whether the tensor is left as it is: fp32 stands for the original numbers."""
        return self.number.name == "fp32"

    @property
    def is_scaled_integer(self) -> bool:
        """Whether codes are integers with scales."""
        return self.number.needs_scale and not self.number.is_float

    def num_scales(self, num_elements: int, num_channels: int) -> int:
        """How many scales a weight of so many elements and output channels has."""
        if self.number.has_codebook:
            return 0
        if self.granularity is Granularity.GROUP:
            assert self.group_size is not None
            per_channel = num_elements // num_channels
            # Rounded up: the last group of a channel may be short, and has a scale all the same.
            return num_channels * -(-per_channel // self.group_size)
        return {Granularity.TENSOR: 1, Granularity.CHANNEL: num_channels}.get(self.granularity, 0)

    def stored_bits(self, num_elements: int, num_channels: int = 1) -> int:
        """Bits in memory, scales, zero points and branch included.

        >>> Precision.parse("w4g32").weight.stored_bits(64 * 64, 64) / 64**2
        4.5

        >>> Precision.parse("mxfp4").weight.stored_bits(64 * 64, 64) / 64**2
        4.25
        """
        count = self.num_scales(num_elements, num_channels)
        scales = SCALE_FORMATS[self.scale or self._usual_scale].stored_bits(count)
        if self.number.is_microscaling:
            scales = count * BLOCK_SCALE_BITS
            scales += SCALE_BITS if self.number.has_tensor_scale else 0
        points = 0 if self.symmetric else count * self._zero_point_bits
        levels = num_channels * 2**self.number.bits * LEVEL_BITS if self.number.has_codebook else 0
        beside = self.branch.stored_bits(num_elements, num_channels) if self.branch else 0
        return num_elements * self.number.bits + scales + points + levels + beside

    @property
    def _zero_point_bits(self) -> int:
        # One that is one of the codes is stored as one.
        return SCALE_FORMATS[self._usual_scale].bits if self.float_zero else self.number.bits

    @property
    def _usual_scale(self) -> str:
        return "fp16" if self.granularity is Granularity.GROUP else "fp32"


@cache
def _pattern() -> re.Pattern[str]:
    # The longest first: fp8_e5m2 is not fp8 and a rest.
    number, scale = (
        "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        for names in (spellings(), SCALE_FORMATS)
    )
    return re.compile(
        rf"w(?P<weight>{number})(?P<tensor>t?)(?P<zero>(?:zf?)?)(?:g(?P<group>[0-9]{{1,{_LONGEST}}}))?"
        rf"(?:s(?P<scale>{scale}))?(?:\+{BRANCH})?"
        rf"(?:a(?P<activation>{number})(?P<symmetric>s?)"
        r"(?:(?P<dynamic>d)|(?P<channels>c)|(?P<first>f))?)?"
    )


def _help() -> str:
    *_, widest, original = sorted(int(text) for text in spellings() if text.isdigit())
    return (
        f"write w<bits>a<bits> such as w4a8 (2 to {widest}, or {original} bits), w4g128a16 "
        f"for groups of 128, w4g64sfp8 for their scales in fp8, w3g64+s0.5% or w3g64+r16 for what "
        f"stands beside codes, w8a8d for dynamic activations, or one of {', '.join(shown_names())}"
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
        # A bare number is no precision: 8 might mean w8 as well as w8a8.
        if spelling in spellings() and not spelling.isdigit():
            number = spelled_format(spelling)
            of_weights = f"w{spelling}" if not number.is_for_inputs else f"w{ORIGINAL_WEIGHTS}"
            spelling = of_weights if number.is_for_weights else f"{of_weights}a{spelling}"
        match = _pattern().fullmatch(spelling)
        if match is None:
            raise PrecisionError(f"{quoted(text)} is not a precision: {_help()}")
        return cls(_weight_format(match), _activation_format(match))

    @cached_property
    def _spelling(self) -> str:
        number = self.weight.number
        # The name alone, only where it reads back to the same: weights per tensor are spelled out.
        is_both = number.is_float and not number.is_for_weights
        if is_both and self == Precision.parse(number.name):
            return number.name
        return spell_weight(self.weight) + spell_activation(self.activation)

    def __str__(self) -> str:
        return self._spelling

    def __repr__(self) -> str:
        return f"Precision({self._spelling!r})"


def _weight_format(match: re.Match[str]) -> TensorFormat:
    number, group = spelled_format(match["weight"]), match["group"]
    if number.is_for_inputs:
        raise PrecisionError(f"{match[0]!r}: {number.name} is for inputs; write w4a{number.name}")
    branch = parsed_branch(match["percent"], match["rank"])
    if match["tensor"] and group:
        raise PrecisionError(f"{match[0]!r}: 't' (one scale) and 'g{group}' exclude each other")
    if not number.needs_scale:
        _refuse_flags(match, number, "tensor", "zero", "group", "scale")
        return TensorFormat(number, Granularity.NONE, branch=branch)
    if number.is_microscaling:
        _refuse_own_groups(match, number)
        return TensorFormat(number, Granularity.GROUP, group_size=number.block, branch=branch)
    if group:
        granularity = Granularity.GROUP
    else:
        granularity = Granularity.TENSOR if match["tensor"] else Granularity.CHANNEL
    size = int(group) if group else None
    has_fraction, scale = match["zero"] == "zf", match["scale"]
    return TensorFormat(number, granularity, not match["zero"], size, scale, has_fraction, branch)


def _activation_format(match: re.Match[str]) -> TensorFormat:
    number = spelled_format(match["activation"] or "fp32")
    if number.is_for_weights:
        raise PrecisionError(f"{match[0]!r}: {number.name} is for weights; write w{number.name}a32")
    if not number.needs_scale:
        _refuse_flags(match, number, "symmetric", "dynamic", "channels", "first")
        return TensorFormat(number, Granularity.NONE)
    letter = match["dynamic"] or match["channels"] or match["first"] or ""
    if number.is_for_inputs and (match["symmetric"] or letter):
        raise PrecisionError(
            f"{match[0]!r}: {number.name} has calibrated scales for the whole input; write "
            f"a{number.name}"
        )
    granularity = _SCALES[letter]
    # Inputs are one-sided after a ReLU, where a symmetric format would waste half of its codes.
    return TensorFormat(number, granularity, number.is_float or bool(match["symmetric"]))


_SCALES = {
    "": Granularity.TENSOR,
    "d": Granularity.TOKEN,
    "c": Granularity.INPUT_CHANNEL,
    "f": Granularity.FIRST_APART,
}
"""By the letter behind an input's format."""


def _refuse_flags(match: re.Match[str], number: NumberFormat, *flags: str) -> None:
    given = [flag for flag in flags if match[flag]]
    if given:
        raise PrecisionError(f"{match[0]!r}: {number.name} has no scale, so no {given[0]!r} either")


def _refuse_own_groups(match: re.Match[str], number: NumberFormat) -> None:
    if match["tensor"] or match["group"]:
        raise PrecisionError(
            f"{match[0]!r}: {number.name} has groups of {number.block} by itself; write "
            f"w{number.name}a32"
        )
    if match["zero"]:
        raise PrecisionError(f"{match[0]!r}: {number.name} is symmetric: it has no zero point")
    if match["scale"]:
        raise PrecisionError(
            f"{match[0]!r}: scales of {number.name} are stored in {number.block_scale}"
        )


def spell_weight(weight: TensorFormat) -> str:
    """The weight's part of a precision, such as ``w4g128``."""
    text = "w" + weight.number.spellings[0]
    text += "t" if weight.granularity is Granularity.TENSOR else ""
    text += "" if weight.symmetric else "z"
    text += "f" if weight.float_zero else ""
    has_group = weight.group_size and not weight.number.is_microscaling
    text += f"g{weight.group_size}" if has_group else ""
    text += "" if weight.scale is None else f"s{weight.scale}"
    return text + ("" if weight.branch is None else f"+{weight.branch}")


def spell_activation(activation: TensorFormat) -> str:
    """The input's part of a precision, such as ``a8d``."""
    number = activation.number
    text = "a" + number.spellings[0]
    text += "s" if activation.symmetric and not number.is_float else ""
    letters = {granularity: letter for letter, granularity in _SCALES.items()}
    return text + letters.get(activation.granularity, "")


_FP32 = TensorFormat(NUMBER_FORMATS["fp32"], Granularity.NONE)
ORIGINAL = Precision(_FP32, _FP32)  # not parsed: other packages are not looked for on import
"""The network as it came: fp32 stands for the original numbers, whatever their type."""
