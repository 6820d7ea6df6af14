"""Gradient-based PTQ: learned rounding, and more bits for the layers of higher importance."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

GRADIENT_PTQ: Final = Recipe(
    name="gradient-ptq",
    version=1,
    summary="importance |gradient x weight| of a layer, more bits to more of it, learned rounding",
    paper=Paper(
        "Yvinec et al.",
        2023,
        "Gradient-Based Post-Training Quantization: Challenging the Status Quo",
        "2308.07662",
    ),
    formula="more bits to a larger sum_i |g_i W_i| of a layer; the least weighted error so",
    sensitivity="zero-cost:proxy=snip,labels=targets",
    solver="ordered",
    candidates=("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8"),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    rounding="adaround",
    choices=(
        Choice("estimator", "importance of a layer; gradient times weight is ours",
               "the abstract, on importance-based mixed precision"),
        Choice("solver", "more bits to layers of higher importance; of such answers the one of the "
               "least importance x relative error", NOT_STATED),
        Choice("candidates", "weights of 2 to 8 bits, inputs of 8", NOT_STATED),
        Choice("rounding", "learned on a small calibration set", "the abstract"),
        Choice("weights", "symmetric, a scale per output channel", NOT_STATED),
        Choice("inputs", "from the least to the largest", NOT_STATED),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "Rounding is learned layer by layer (AdaRound); the paper's own loss and optimizer are "
        "not taken.",
        "Levels are even; the paper also has steps that are not.",
    ),
)  # fmt: skip
