"""Layer-Wise Quantization: the most important blocks at more bits, the others at fewer."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

LAYER_WISE: Final = Recipe(
    name="layer-wise-quantization",
    version=1,
    summary="blocks by how far they turn their input (LIM), two levels at a fractional mean",
    paper=Paper(
        "Dumitru et al.",
        2024,
        "Layer-Wise Quantization: A Pragmatic and Effective Method for Quantizing LLMs Beyond "
        "Integer Bit-Levels",
        "2406.17415",
    ),
    formula="the blocks of the smallest cos(input, output) at 4 bits, as many as fit; others at 2",
    sensitivity="layer-input-modification",
    solver="ordered",
    candidates=("w2g128a16", "w4g128a16"),
    constraint="a mean number of bits that need not be whole: effective_bits, or weight_bytes",
    tie_blocks=True,
    choices=(
        Choice("estimator", "minus the cosine of a block's input and output, over positions",
               "the paper, on layer input modification (LIM); its other order: --sensitivity "
               "z-score"),
        Choice("candidates", "4 bits and 2",
               "the paper, on the experiments, which have 8 and 4 bits as well"),
        Choice("groups", "128 weights share a scale", NOT_STATED),
        Choice("blocks", "all layers of a block have its bits",
               "the paper, whose layers are blocks here"),
        Choice("solver", "the first of the order at more bits, as many as fit",
               "the paper, on the method"),
        Choice("weights", "symmetric, to nearest",
               "the paper, on quanto; its other rounding, GPTQ: --rounding gptq"),
    ),
    departures=(
        "Layers outside all blocks, such as a head, have a place in the order of their own.",
        "By --sensitivity z-score a block counts by the most important of its layers.",
    ),
)  # fmt: skip
