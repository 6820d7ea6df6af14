"""ZeroQ: examples out of BatchNorm's statistics, the divergence of one layer, a frontier by DP."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

ZEROQ: Final = Recipe(
    name="zeroq",
    version=1,
    summary="distilled examples, KL divergence of one layer at a time, dynamic programming",
    paper=Paper(
        "Cai et al.", 2020, "ZeroQ: A Novel Zero Shot Quantization Framework", "2001.00281"
    ),
    formula="min over b of sum_l mean_x KL(f(x), f with layer l at b_l (x)), x distilled",
    sensitivity="measured:score=divergence",
    solver="dynamic-programming",
    candidates=("w2za8", "w4za8", "w8za8"),
    constraint="model size, one budget",
    source="batch-norm",
    choices=(
        Choice(
            "data",
            "distilled until BatchNorm sees what it remembers",
            "the paper, on distilled data",
        ),
        Choice(
            "estimator",
            "KL divergence of the outputs, one layer quantized",
            "the paper, on sensitivity",
        ),
        Choice(
            "candidates", "weights of 2, 4 or 8 bits, inputs of 8", "the paper's tables of results"
        ),
        Choice(
            "solver", "sums of single layers, by dynamic programming", "the paper, on sensitivity"
        ),
        Choice("weights", "with a zero point, a scale per output channel", "the published code"),
        Choice(
            "inputs",
            "from the least to the largest of the distilled examples",
            "the paper, on distilled data",
        ),
        Choice("rounding", "to nearest", NOT_STATED),
    ),
    departures=(
        "A cell quantizes the layer's input as well, which has 8 bits in each.",
        "Examples are distilled batch by batch, from the statistics of the batch (mpq sources).",
        "Your own examples say their shape, and are what answers are measured on.",
    ),
)
