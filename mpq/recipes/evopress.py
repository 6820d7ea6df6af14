"""EvoPress: measured evolution by switches of levels, from a uniform precision."""

from typing import Final

from mpq.recipes.recipe import Choice, Paper, Recipe

EVOPRESS: Final = Recipe(
    name="evopress",
    version=2,
    summary="measured evolution by level switches from a uniform precision, on GPTQ's weights",
    paper=Paper(
        "Sieberling et al.",
        2024,
        "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
        "2410.14649",
    ),
    formula="min over b of mean_x KL(f(x), f at b (x)), measured on the whole network",
    sensitivity="weight-error",
    solver="level-switch:selection=128@1/64;16@1/8,batch_size=4,num_trials=600,is_measured=true",
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
        Choice("children", "128 in each of 150 generations, of which 16 and then 4 survive",
               "the published code, on the quantization search"),
        Choice("examples", "a 64th, an eighth and all: 2,048, 16,384 and 131,072 tokens there",
               "the published code, on the quantization search"),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "Examples of the last step are always the same, those of the others drawn anew.",
        "Layers of any sizes are switched while the limit holds; what a uniform precision leaves "
        "of it is hardly used.",
        "The table beside the answer is of weight errors, and not used by it.",
    ),
)  # fmt: skip
