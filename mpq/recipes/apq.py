"""APQ: evolution by a predictor of quantized accuracy, which an earlier one teaches."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

APQ: Final = Recipe(
    name="apq",
    version=1,
    summary="evolution by a predictor of what is measured, bits of weights and inputs apart",
    paper=Paper(
        "Wang et al.",
        2020,
        "APQ: Joint Search for Network Architecture, Pruning and Quantization Policy",
        "2006.08509",
    ),
    formula="min over b of what the whole quantized network loses, by a predictor that is measured",
    sensitivity="weight-error",
    solver="surrogate:is_measured=true",
    candidates=tuple(f"w{w}a{a}" for w in (4, 6, 8) for a in (4, 6, 8)),
    constraint="latency or energy",
    choices=(
        Choice("estimator", "none: whole networks are measured", "the abstract"),
        Choice("candidates", "4, 6 or 8 bits, of weights and of inputs",
               "the paper's tables of results"),
        Choice("solver", "evolutionary search by the predictor", "the abstract"),
        Choice("predictor", "a Gaussian process about the sum over layers; the paper's: a network",
               "the abstract, on the quantization-aware accuracy predictor"),
        Choice("measurements", "100, ten at once", NOT_STATED),
        Choice("transfer", "an earlier search of the same layers, by the same metric and score, if "
               "you name its log (earlier=FILE)",
               "the abstract, where the predictor of full precision is what is transferred"),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
    ),
    departures=(
        "Neither architecture nor pruning is searched.",
        "What is transferred are measured assignments of an earlier search, since at full "
        "precision there is nothing to choose.",
        "Between batches of measurements the predictor is fitted again.",
    ),
    steps=("The paper trains the answer with its rounding (mpq tune, or mpq export).",),
)  # fmt: skip
