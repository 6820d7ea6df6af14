"""Precisions as values: how a weight and an activation are stored.

Spelling, for example ``w4g128a8``:

===========  =======================================================================
``w4``       weight: a number format as ``mpq.quantization.formats`` spells it: ``2`` to ``8``
             is an integer format, ``16`` is fp16, ``32`` is fp32, or a name such as ``fp8`` or
             ``int16`` (``w8aint16``); ``0``: all weights are 0, and have no codes
``t``        one scale for the whole weight tensor (default: one per output channel)
``z``        affine, with a zero point (default for weights: symmetric)
``zf``       affine, with a zero point that is a fraction, as HQQ has it (``z``: one of the codes)
``g128``     one scale for every 128 consecutive weights of an output channel
``sfp8``     what scales are stored in, a name of ``mpq.quantization.scale_formats`` (default: fp16
             for scales of groups, fp32 for others, unless a target says otherwise)
``+s0.5%``   beside the codes half a percent of the weights in fp16; ``+s1%m``, ``+s1%g`` or
             ``+s1%e``: by a rule (``mpq.quantization.side_branch``); ``+r16``: a product of rank 16
``a8``       activation: as for weights; without this part the activation stays fp32
``s``        symmetric (default for integer activations: affine, with a zero point)
``d``        dynamic: one scale per token, found while running (default: one static scale per
             tensor, calibrated)
``dg128``    dynamic: one scale for every token and 128 consecutive input channels
``c``        static, one scale per input channel
``f``        static, the first position of a sequence with a scale of its own
``[2,4]``    integers with bits for each output channel (``1``: signs, ``0``: none); behind all
             else of the weight a colon and a digit for each, which it has: ``w[2,4]g64:0110a16``;
             ``:i512/128x0110`` is of blocks of 128 inputs, ``:g128/64x0110`` of every group of two
             rows of 128. Of what is read: ``a[4,8]dg128:512/128x0010`` has a digit for every 128
             input channels; ``a[4,8]:t64/70x10`` one for every cluster of steps, behind its
             examples
===========  =======================================================================

A name alone stands for both: ``fp8``, ``bf16``, ``fp32``, ``int8`` (which is ``w8a8``). The
microscaling formats such as ``mxfp4`` are of weights alone and have their own groups: ``mxfp4`` is
``wmxfp4a32``. ``cb3``, which has levels for every channel and no scales, ``binary`` and ``ternary``
are of weights alone, too: ``wternaryg64a16``. ``4log2``, ``4twin`` and others of their families are
of inputs alone: ``4twin`` is ``w32a4twin``.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Self, final

from mpq._support.json_object import quoted
from mpq.errors import PrecisionError
from mpq.quantization.channel_bits import INPUTS, MARKS, ChannelBits
from mpq.quantization.formats import NUMBER_FORMATS, shown_names, spelled_format, spellings
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.side_branch import BRANCH, parsed_branch
from mpq.quantization.step_bits import SPELLED_STEPS, StepBits
from mpq.quantization.tensor_format import Granularity, TensorFormat

ORIGINAL_WEIGHTS = 32
"""How weights that stay as they came are written, after ``w``."""
_LONGEST = 20
"""Digits of a group's size that are read as a number at all."""
_NUMBER = rf"[0-9]{{1,{_LONGEST}}}"
_BITS = "[0-9](?:,[0-9])+"


@cache
def _pattern() -> re.Pattern[str]:
    # The longest first: fp8_e5m2 is not fp8 and a rest.
    number, scale = (
        "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        for names in (spellings(), SCALE_FORMATS)
    )
    return re.compile(
        rf"w(?:(?P<weight>{number})|\[(?P<bits>{_BITS})\])"
        rf"(?P<tensor>t?)(?P<zero>(?:zf?)?)(?:g(?P<group>{_NUMBER}))?"
        rf"(?:s(?P<scale>{scale}))?(?:\+{BRANCH})?"
        rf"(?::(?P<axis>[ig]?)(?:(?P<count>{_NUMBER})/(?P<block>{_NUMBER})x)?(?P<codes>[0-9]+))?"
        rf"(?:a(?:(?P<activation>{number})|\[(?P<read_bits>{_BITS})\])(?P<symmetric>s?)"
        rf"(?:(?P<dynamic>d)(?:g(?P<read_group>{_NUMBER}))?|(?P<channels>c)|(?P<first>f))?"
        rf"(?::(?:{SPELLED_STEPS}|(?:(?P<read_count>{_NUMBER})/(?P<read_block>{_NUMBER})x)?"
        rf"(?P<read_codes>[0-9]+)))?)?"
    )


def _help() -> str:
    *_, widest, original = sorted(int(text) for text in spellings() if text.isdigit())
    return (
        f"write w<bits>a<bits>, as w4a8 (2 to {widest} or {original} bits), w4g128a16 "
        f"in groups of 128, w4g64sfp8 with fp8 scales, w3g64+s1% or w3g64+r16 with "
        f"branches, w8a8d for dynamic inputs, w4a8dg128 by block, or "
        f"{', '.join(shown_names())}"
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


def _channels(match: re.Match[str]) -> ChannelBits | None:
    bits, codes = match["bits"], match["codes"]
    if (bits is None) != (codes is None):
        raise PrecisionError(f"{quoted(match[0])}: bits of channels go with a digit for each")
    if bits is None:
        return None
    count, block = int(match["count"] or len(codes)), int(match["block"] or 1)
    axis = {mark: axis for axis, mark in MARKS.items()}[match["axis"]]
    return ChannelBits.parse(bits, codes, count, block, axis)


def _weight_format(match: re.Match[str]) -> TensorFormat:
    channels, group = _channels(match), match["group"]
    number = channels.numbers[-1] if channels else spelled_format(match["weight"])
    if number.is_for_inputs:
        raise PrecisionError(f"{match[0]!r}: {number.name} is for inputs; write w4a{number.name}")
    branch = parsed_branch(match["percent"], match["picks"], match["rank"])
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
    symmetric, scale, has_fraction = not match["zero"], match["scale"], match["zero"] == "zf"
    return TensorFormat(number, granularity, symmetric, size, scale, has_fraction, channels, branch)


def _blocks(match: re.Match[str]) -> ChannelBits | None:
    """Of what a layer reads."""
    bits, codes = match["read_bits"], match["read_codes"]
    if match["step_codes"] is not None:
        return None
    if (bits is None) != (codes is None):
        raise PrecisionError(
            f"{quoted(match[0])}: bits of blocks of inputs go with a digit for each"
        )
    if bits is None:
        return None
    count, block = int(match["read_count"] or len(codes)), int(match["read_block"] or 1)
    return ChannelBits.parse(bits, codes, count, block, INPUTS)


def _activation_format(match: re.Match[str]) -> TensorFormat:
    blocks, group = _blocks(match), match["read_group"]
    steps = StepBits.matched(match)
    parts = blocks or steps
    number = parts.numbers[-1] if parts else spelled_format(match["activation"] or "fp32")
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
    if blocks and not group:
        raise PrecisionError(
            f"{quoted(match[0])}: blocks of inputs with bits of their own have scales of their "
            f"own: write a[4,8]dg128 and so on"
        )
    granularity = Granularity.TOKEN_BLOCK if group else _SCALES[letter]
    size = int(group) if group else None
    # Inputs are one-sided after a ReLU, where a symmetric format would waste half of its codes.
    symmetric = number.is_float or bool(match["symmetric"])
    return TensorFormat(number, granularity, symmetric, size, channels=blocks, steps=steps)


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
    bits, _, codes = str(weight.channels or weight.number.spellings[0]).partition(":")
    text = "w" + bits
    text += "t" if weight.granularity is Granularity.TENSOR else ""
    text += "" if weight.symmetric else "z"
    text += "f" if weight.float_zero else ""
    has_group = weight.group_size and not weight.number.is_microscaling
    text += f"g{weight.group_size}" if has_group else ""
    text += "" if weight.scale is None else f"s{weight.scale}"
    text += "" if weight.branch is None else f"+{weight.branch}"
    return text + (f":{codes}" if codes else "")


def spell_activation(activation: TensorFormat) -> str:
    """The input's part of a precision, such as ``a8d``."""
    number = activation.number
    parts = activation.channels or activation.steps
    bits, _, codes = str(parts or number.spellings[0]).partition(":")
    # Blocks are always of inputs: their mark is left out.
    codes = f":{codes.removeprefix(MARKS[INPUTS])}" if codes else ""
    text = "a" + bits
    text += "s" if activation.symmetric and not number.is_float else ""
    if activation.granularity is Granularity.TOKEN_BLOCK:
        return f"{text}dg{activation.group_size}{codes}"
    letters = {granularity: letter for letter, granularity in _SCALES.items()}
    return text + letters.get(activation.granularity, "") + codes


_FP32 = TensorFormat(NUMBER_FORMATS["fp32"], Granularity.NONE)
ORIGINAL = Precision(_FP32, _FP32)  # not parsed: other packages are not looked for on import
"""The network as it came: fp32 stands for the original numbers, whatever their type."""
