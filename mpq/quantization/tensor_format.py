"""How one tensor is stored: a number format, its scales, and what else there is of it."""

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import final

from mpq._support.json_object import quoted
from mpq.errors import PrecisionError
from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS, ChannelBits, is_of_parts
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.side_branch import SideBranch
from mpq.quantization.step_bits import StepBits

LEVEL_BITS = 16
"""Bits of one level of a codebook."""
SCALE_BITS = 32
"""Bits of one scale of a whole weight in a microscaling format."""
FACTOR_BITS = 4
"""Bits that say what a channel's scale is multiplied by at inputs of one width."""
BLOCK_SCALE_BITS = 8
"""Bits of one scale of a microscaling format."""
LARGEST_GROUP = 2**31
"""No channel has as many weights."""


class Granularity(Enum):
    """How many numbers share a scale."""

    NONE = "none"
    TENSOR = "per_tensor"
    CHANNEL = "per_channel"
    GROUP = "per_group"
    TOKEN = "per_token"
    TOKEN_BLOCK = "per_token_and_block"
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
        group_size: Numbers per scale, for ``Granularity.GROUP``; for ``TOKEN_BLOCK`` consecutive
            input channels, which share one in every token.
        scale: What scales are stored in, one of ``SCALE_FORMATS``; ``None``: fp16 for those of
            groups and fp32 for others, or what a target's numerics say.
        float_zero: Whether the zero point is a fraction, and need not be one of the codes: it is
            stored in fp16 for groups, in fp32 for channels and tensors.
        channels: Which format every output channel, input or group of a weight has, or every block
            of what a layer reads (``TOKEN_BLOCK``), where they differ; ``number`` is then the
            widest of them. Inputs of a weight whose format is one with a scale for every channel
            have this scale times a factor of their width (``mpq.quantization.tied_scales``).
        branch: What a weight has beside its codes, which is added to what they stand for.
        steps: Which format what is read has at which steps of a diffusion, where they differ;
            ``number`` is then the widest of them.

    Raises:
        PrecisionError: If the parts contradict each other.
    """

    number: NumberFormat
    granularity: Granularity
    symmetric: bool = True
    group_size: int | None = None
    scale: str | None = None
    float_zero: bool = False
    channels: ChannelBits | None = None
    branch: SideBranch | None = None
    steps: StepBits | None = None

    def __post_init__(self) -> None:
        if self.number.needs_scale == (self.granularity is Granularity.NONE):
            need = "needs a scale" if self.number.needs_scale else "has no scale"
            raise PrecisionError(f"{self.number.name} {need}; got {self.granularity.value!r}")
        self._check_group()
        of_inputs = (
            Granularity.TOKEN,
            Granularity.TOKEN_BLOCK,
            Granularity.INPUT_CHANNEL,
            Granularity.FIRST_APART,
        )
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
        is_small = self.number.has_codes and self.number.bits <= 8
        if self.float_zero and (self.symmetric or self.number.is_float or not is_small):
            raise PrecisionError(
                f"zero points that are fractions are those of affine integers of up to 8 bits; got "
                f"{self.number.name}"
            )
        if self.scale is not None:
            self._check_scale(self.scale)
        if self.channels is not None:
            self._check_channels(self.channels)
        if self.steps is not None and (self.channels or self.number != self.steps.numbers[-1]):
            raise PrecisionError(
                f"inputs with bits by step are as wide as the widest, and have no other parts; got "
                f"{self.number.name}"
            )
        if self.branch is not None and not self.number.has_codes:
            raise PrecisionError(
                f"a branch stands beside codes, and {self.number.name} has none: leave "
                f"+{self.branch} out"
            )

    def _check_group(self) -> None:
        has_groups = self.granularity in (Granularity.GROUP, Granularity.TOKEN_BLOCK)
        if has_groups != (self.group_size is not None):
            raise PrecisionError("a group size goes with granularity 'per_group', and only there")
        if self.group_size is not None and self.group_size < 1:
            raise PrecisionError(f"a group has at least 1 weight; got {self.group_size}")
        if self.group_size is not None and self.group_size > LARGEST_GROUP:
            raise PrecisionError(
                f"a group has at most {LARGEST_GROUP} weights; got {self.group_size}"
            )

    def _check_channels(self, channels: ChannelBits) -> None:
        if self.granularity is Granularity.TOKEN_BLOCK and channels.axis != INPUTS:
            raise PrecisionError(f"what a layer reads has blocks of inputs, and no {channels.axis}")
        of_weights = [x.name for x in channels.numbers if x.is_for_weights]
        if self.granularity is Granularity.TOKEN_BLOCK and of_weights:
            raise PrecisionError(f"what a layer reads has integers of 2 bits on: {of_weights[0]}")
        if not self.has_channels:
            raise PrecisionError(
                "channels with bits of their own have scales of their own, which nothing else is "
                "stored relative to"
            )
        if self.number != channels.numbers[-1]:
            raise PrecisionError(f"the widest of {channels} is not {self.number.name}")
        if not self.symmetric and any(number.is_float for number in channels.numbers):
            raise PrecisionError(
                f"signs have no zero point: with parts of 1 bit ({channels.numbers[0].name}) take "
                "symmetric formats"
            )
        size, is_inputs = self.group_size, channels.axis == INPUTS
        if channels.axis == GROUPS and size != channels.block:
            raise PrecisionError(
                f"parts are groups of {channels.block}, but those of scales {size}"
            )
        if is_inputs and size is not None and channels.block % size:
            raise PrecisionError(
                f"blocks of {channels.block} inputs are no whole groups of {size}, which share a "
                f"scale: take a multiple of {size}"
            )
        if is_inputs and size is None and not self.symmetric:
            raise PrecisionError(
                "inputs with bits of their own share a channel's scale, but not its zero point: "
                "take a symmetric format, or groups"
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
        told += [] if self.channels is None else [f"channels={str(self.channels)!r}"]
        told += [] if self.branch is None else [f"branch={self.branch!r}"]
        told += [] if self.steps is None else [f"steps={str(self.steps)!r}"]
        return f"TensorFormat({', '.join(told)})"

    @property
    def why_simulated(self) -> str:
        """Why what is in this format is computed with in the simulation alone; empty: not so."""
        if self.steps is not None:
            return "its inputs have other bits at other steps: take one cluster (--cluster)"
        if self.channels is not None:
            return f"no device says how fast {self._parted} of different bits are"
        if not self.number.bits:
            return "no tool here leaves a whole weight out (0 bits)"
        if self.branch is not None:
            return f"no tool here has a branch beside a weight's codes (+{self.branch})"
        if self.number.is_for_inputs:
            return f"no kernel here multiplies codes of {self.number.name}"
        return {
            Granularity.INPUT_CHANNEL: "no kernel here has a scale for every input channel",
            Granularity.FIRST_APART: "no kernel here has a scale for the first position alone",
            Granularity.TOKEN_BLOCK: "no kernel here has a scale for every token and block of "
            "input channels",
        }.get(self.granularity, "")

    @property
    def _parted(self) -> str:
        assert self.channels is not None
        return "output channels" if self.channels.axis == OUTPUTS else self.channels.axis

    @property
    def has_tied_scales(self) -> bool:
        """Whether a channel has one scale for inputs of different bits."""
        is_inputs = self.channels is not None and self.channels.axis == INPUTS
        return is_inputs and self.granularity is Granularity.CHANNEL

    @property
    def is_coupled(self) -> bool:
        """Whether numbers of one row differ in bits: a rounding that fits data sees all of them."""
        return self.channels is not None and self.channels.axis != OUTPUTS

    @property
    def table(self) -> tuple[float, ...]:
        """The numbers that codes are places of; empty: codes are numbers, as of parts."""
        return self.number.table if self.channels is None else ()

    def numbers_per_scale(self, num_inputs: int) -> int:
        """Consecutive weights of a channel of ``num_inputs`` whose scale is kept once.

        Of blocks of inputs those of each are, as they are used.
        """
        if self.has_tied_scales and self.channels is not None:
            return self.channels.block
        return self.group_size or num_inputs

    @property
    def plain(self) -> "TensorFormat":
        """The format of the codes, without what stands beside them."""
        return self if self.branch is None else replace(self, branch=None)

    @property
    def is_exact(self) -> bool:
        """Whether the tensor is left as it is: fp32 stands for the original numbers."""
        return self.number.name == "fp32"

    @cached_property
    def by_channel(self) -> "tuple[TensorFormat, ...]":
        """``[F]`` formats of channels with bits of their own; else this one alone."""
        if self.channels is None:
            return (self,)
        return tuple(replace(self, number=x, channels=None) for x in self.channels.numbers)

    @cached_property
    def by_step(self) -> "tuple[TensorFormat, ...]":
        """``[T]`` formats of clusters of steps with bits of their own; else none."""
        if self.steps is None:
            return ()
        return tuple(replace(self, number=x, steps=None) for x in self.steps.by_cluster)

    @property
    def has_channels(self) -> bool:
        """Whether channels of such a weight, or blocks of what is read, may have their own bits."""
        scale = self.scale
        has_second = scale is not None and SCALE_FORMATS[scale].second_scale
        with_scales = (Granularity.CHANNEL, Granularity.GROUP, Granularity.TOKEN_BLOCK)
        is_by_row = self.granularity in with_scales
        return is_of_parts(self.number) and is_by_row and not has_second and self.branch is None

    @property
    def has_blocks(self) -> bool:
        """Whether blocks of what is read may have bits of their own."""
        return self.granularity is Granularity.TOKEN_BLOCK and self.has_channels

    def has_parts(self, axis: str) -> bool:
        """Whether parts of such a weight, as ``ChannelBits`` has them, may have their own bits."""
        if not self.has_channels or axis == OUTPUTS:
            return self.has_channels
        # One scale of a channel does for several widths, one zero point does not.
        return self.granularity is Granularity.GROUP or (axis == INPUTS and self.symmetric)

    @property
    def mean_bits(self) -> float:
        """Bits of a code, averaged over channels, or over steps; without scales."""
        parts = self.channels or self.steps
        return self.number.bits if parts is None else parts.mean_bits

    @property
    def multiplied_bits(self) -> float:
        """Bits that a multiplier meets, averaged as ``mean_bits`` are (``NumberFormat``)."""
        parts = self.channels or self.steps
        return self.number.multiplied_bits if parts is None else parts.mean_bits

    @property
    def is_scaled_integer(self) -> bool:
        """Whether codes are integers with scales."""
        return self.number.has_codes and not self.number.is_float

    def num_scales(self, num_elements: int, num_channels: int) -> int:
        """How many scales a weight of so many elements and output channels has."""
        if self.number.has_codebook:
            return 0
        if self.granularity is Granularity.GROUP:
            if not self.number.bits:  # a channel's scale may be that of other inputs, too
                return 0
            assert self.group_size is not None
            per_channel = num_elements // num_channels
            # Rounded up: the last group of a channel may be short, and has a scale all the same.
            return num_channels * -(-per_channel // self.group_size)
        return {Granularity.TENSOR: 1, Granularity.CHANNEL: num_channels}.get(self.granularity, 0)

    def stored_bits(self, num_elements: int, num_channels: int = 1) -> int:
        """Bits in memory, scales, zero points and branch included.

        >>> from mpq.quantization.precision import Precision
        >>> Precision.parse("w4g32").weight.stored_bits(64 * 64, 64) / 64**2
        4.5

        >>> Precision.parse("mxfp4").weight.stored_bits(64 * 64, 64) / 64**2
        4.25

        Raises:
            PrecisionError: If channels have bits of their own, and are not as many.
        """
        if self.channels is not None:
            return self._bits_of_channels(self.channels, num_elements, num_channels)
        count = self.num_scales(num_elements, num_channels)
        scales = SCALE_FORMATS[self.scale or self._usual_scale].stored_bits(count)
        if self.number.is_microscaling:
            scales = count * BLOCK_SCALE_BITS
            scales += SCALE_BITS if self.number.has_tensor_scale else 0
        points = 0 if self.symmetric else count * self._zero_point_bits
        levels = num_channels * 2**self.number.bits * LEVEL_BITS if self.number.has_codebook else 0
        beside = self.branch.stored_bits(num_elements, num_channels) if self.branch else 0
        return num_elements * self.number.bits + scales + points + levels + beside

    def _bits_of_channels(self, channels: ChannelBits, num_elements: int, count: int) -> int:
        if channels.axis != OUTPUTS:
            return self._bits_of_inputs(channels, num_elements, count)
        if count != channels.num_channels:
            raise PrecisionError(
                f"{quoted(str(channels))} is of {channels.num_channels} channels, the weight has "
                f"{count}"
            )
        pairs = zip(self.by_channel, channels.counts, strict=True)
        each = num_elements // count
        return channels.code_bits + sum(x.stored_bits(each * n, n) for x, n in pairs)

    def _bits_of_inputs(self, channels: ChannelBits, num_elements: int, count: int) -> int:
        """Of ``count`` rows, numbers of one row having different bits."""
        rows = 1 if channels.axis == GROUPS else count
        cells = [rows * each for each in channels.counts]
        if sum(cells) != num_elements:
            raise PrecisionError(
                f"{quoted(str(channels))} is of {sum(cells)} numbers in {count} rows, the weight "
                f"has {num_elements}"
            )
        codes = sum(x.bits * n for x, n in zip(channels.numbers, cells, strict=True))
        own = SCALE_FORMATS[self.scale or self._usual_scale]
        if self.has_tied_scales:
            factors = tied_bits(sum(x.has_codes for x in channels.numbers), count)
            return channels.code_bits + codes + own.stored_bits(count) + factors
        assert self.group_size is not None
        if channels.axis == GROUPS:
            scales = list(channels.counts_of_blocks)
        else:
            scales = [count * -(-n // self.group_size) for n in channels.counts]
        scales = [n * x.has_codes for x, n in zip(channels.numbers, scales, strict=True)]
        pairs = zip(self.by_channel, scales, strict=True)
        points = 0 if self.symmetric else sum(x._zero_point_bits * n for x, n in pairs)
        return channels.code_bits + codes + own.stored_bits(sum(scales)) + points

    @property
    def _zero_point_bits(self) -> int:
        # One that is one of the codes is stored as one.
        return SCALE_FORMATS[self._usual_scale].bits if self.float_zero else self.number.bits

    @property
    def _usual_scale(self) -> str:
        return "fp16" if self.granularity is Granularity.GROUP else "fp32"


def tied_bits(num_widths: int, num_channels: int) -> int:
    """What the scales of inputs take beside those of channels; the widest has these.

    Args:
        num_widths: That have codes.
        num_channels: ``O``.
    """
    return (num_widths - 1) * (SCALE_BITS + FACTOR_BITS * num_channels)
