"""SimQ-NAS: measured search of a quantization policy with a lightly trained predictor."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

SIMQ_NAS: Final = Recipe(
    name="simq-nas",
    version=1,
    summary="measured search over 8-bit and original layers, with a lightly trained predictor",
    paper=Paper(
        "Sridhar et al.",
        2023,
        "SimQ-NAS: Simultaneous Quantization Policy and Neural Architecture Search",
        "2312.13301",
    ),
    formula="min over b of what the whole quantized network loses, measured where it looks best",
    sensitivity="weight-error",
    solver="surrogate:is_measured=true",
    candidates=("w8a8", "fp32"),
    constraint="latency or model size",
    choices=(
        Choice("estimator", "none: whole networks are measured", "the abstract"),
        Choice("candidates", "8 bits, or as it came", "the abstract, on INT8; others: not stated"),
        Choice("solver", "iterations of search by the predictor, measuring and fitting it",
               "the abstract"),
        Choice("predictor", "a Gaussian process about the sum over layers", NOT_STATED),
        Choice("measurements", "100, ten at once", NOT_STATED),
        Choice("transfer", "an earlier search of the same layers, by the same metric and score, if "
               "you name its log (earlier=FILE)", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
    ),
    departures=(
        "The network stays as it is: of the paper's two searches this is the one of precisions.",
        "One limit is searched, and not the whole frontier at once.",
        "The predictor begins at errors of weights, and needs few measurements.",
    ),
)  # fmt: skip
