"""EvoPress: measured evolution by switches of levels, from a uniform precision."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

EVOPRESS: Final = Recipe(
    name="evopress",
    version=1,
    summary="measured evolution by level switches from a uniform precision, on GPTQ's weights",
    paper=Paper(
        "Sieberling et al.",
        2024,
        "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
        "2410.14649",
    ),
    formula="min over b of mean_x KL(f(x), f at b (x)), measured on the whole network",
    sensitivity="weight-error",
    solver="level-switch:is_measured=true",
    candidates=tuple(f"w{bits}g128a16" for bits in (2, 3, 4, 5, 6)),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    rounding="gptq",
    choices=(
        Choice("estimator", "none: whole networks are measured", "the paper, on the fitness"),
        Choice("fitness", "KL divergence from the original on calibration examples",
               "the paper, on the fitness"),
        Choice("candidates", "2 to 6 bits", "the paper, on quantization"),
        Choice("groups", "128 weights share a scale", "the paper, on quantization"),
        Choice("weights", "by GPTQ, every layer at every number of bits",
               "the paper, on quantization"),
        Choice("solver", "the best child of level switches is the next parent",
               "the paper's algorithm 1"),
        Choice("start", "uniform, the most that the limit holds", "the paper, on the search"),
        Choice("children", "16 in a generation, 1000 measurements", NOT_STATED),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "Every child is measured on all examples, and not in steps of more and more.",
        "Layers of any sizes are switched while the limit holds.",
        "The table beside the answer is of weight errors, and not used by it.",
    ),
)  # fmt: skip
