"""Types of GGUF's tensors, and which of them holds a weight in one of our formats."""

from dataclasses import dataclass
from typing import Final, final

from mpq.quantization.blocks import SMALL_BLOCK, SUPER_BLOCK, block_of
from mpq.quantization.tensor_format import Granularity, TensorFormat


@final
@dataclass(frozen=True)
class BlockType:
    """A tensor type: numbers are stored in blocks of a fixed size.

    Args:
        name: As in ggml.
        block: Numbers of a block.
        block_bytes: Bytes of a block, scales included.
        bits: Of a code in it.
    """

    name: str
    block: int
    block_bytes: int
    bits: int


BLOCK_TYPES: Final = {
    each.name: each
    for each in (
        BlockType("Q4_0", SMALL_BLOCK, 18, 4),
        BlockType("Q5_0", SMALL_BLOCK, 22, 5),
        BlockType("Q8_0", SMALL_BLOCK, 34, 8),
        BlockType("MXFP4", SMALL_BLOCK, 17, 4),
        BlockType("NVFP4", 2 * SMALL_BLOCK, 36, 4),
        BlockType("TQ2_0", SUPER_BLOCK, 66, 2),
        BlockType("Q2_K", SUPER_BLOCK, 84, 2),
        BlockType("Q3_K", SUPER_BLOCK, 110, 3),
        BlockType("Q4_K", SUPER_BLOCK, 144, 4),
        BlockType("Q5_K", SUPER_BLOCK, 176, 5),
        BlockType("Q6_K", SUPER_BLOCK, 210, 6),
    )
}
MICROSCALING: Final = {"mxfp4": "MXFP4", "nvfp4": "NVFP4"}
"""By the name of the number format; ggml's nvfp4 has no scale for the whole weight in a block."""
FLOAT_TYPES: Final = {"fp16": "F16", "bf16": "BF16"}
"""By the name of the number format."""
TWO_BITS: Final = ("TQ2_0", "Q2_K")
_SUPER: Final = {3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K"}
_SMALL: Final = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}


def block_type(weight: TensorFormat, num_inputs: int, two_bits: str) -> BlockType:
    """The type that a weight's codes are stored in.

    Args:
        weight: A symmetric format that needs a scale, for which ``layout_refusal`` is empty.
        num_inputs: ``K`` of the weight ``[O, K]``.
        two_bits: One of ``TWO_BITS``, for 2 bits in super-blocks.
    """
    bits = weight.number.bits
    if weight.number.is_microscaling:
        return BLOCK_TYPES[MICROSCALING[weight.number.name]]
    if block_of(weight, num_inputs) == SUPER_BLOCK:
        return BLOCK_TYPES[{2: two_bits, **_SUPER}[bits]]
    return BLOCK_TYPES[_SMALL[bits]]


def layout_refusal(weight: TensorFormat, num_inputs: int) -> str:
    """Why no type has blocks like a weight's rows or groups; empty where one has."""
    group, bits = weight.group_size, weight.number.bits
    if num_inputs % SMALL_BLOCK:
        return f"its types hold rows of whole blocks of {SMALL_BLOCK}, and a row has {num_inputs}"
    if weight.number.is_microscaling:
        block = BLOCK_TYPES[MICROSCALING[weight.number.name]].block
        whole = num_inputs % block == 0
        return "" if whole else f"{weight.number.name} has blocks of {block}, a row {num_inputs}"
    if weight.granularity is not Granularity.GROUP or group is None:
        return ""
    if group % SMALL_BLOCK:
        return f"groups of {group} are no whole blocks of {SMALL_BLOCK}"
    if num_inputs % group:
        return f"{num_inputs} inputs are no whole groups of {group}"
    if block_of(weight, num_inputs) == SMALL_BLOCK and bits in (2, 3, 6):
        wider = {2: 4, 3: 4, 6: 8}[bits]
        return (
            f"scales of groups in Q{bits}_K are products of two rounded numbers; w{bits} has no "
            f"groups or multiples of {SUPER_BLOCK}, and w{wider}g{group} takes the room that "
            f"w{bits}g{group} would"
        )
    return ""
