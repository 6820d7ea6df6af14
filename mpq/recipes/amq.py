"""AMQ: bits of a language model's layers by measured search with a predictor of quality."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

AMQ: Final = Recipe(
    name="amq",
    version=1,
    summary="measured search over HQQ weights of 2 to 4 bits, with a predictor of what is measured",
    paper=Paper(
        "Lee et al.",
        2025,
        "AMQ: Enabling AutoML for Mixed-precision Weight-Only Quantization of Large Language "
        "Models",
        "2509.12019",
    ),
    formula="min over b of the divergence of the whole quantized network, measured",
    sensitivity="measured:score=divergence",
    solver="surrogate:is_measured=true",
    candidates=("w2zfg128a16", "w3zfg128a16", "w4zfg128a16"),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    choices=(
        Choice("estimator", "divergence with one layer at its fewest bits, for pruning",
               "the paper, on pruning of the search space"),
        Choice("candidates", "2, 3 or 4 bits", "the paper, on the search space"),
        Choice("groups", "128 weights share a scale", "the paper, on the search space"),
        Choice("weights", "HQQ's zero points, to nearest, as a proxy",
               "the paper, on the quantization proxy"),
        Choice("solver", "iterations of search, measuring and fitting the predictor",
               "the paper, on the predictor; its kind and the number of measurements: ours"),
        Choice("predictor", "the sum over layers, corrected by what was measured", NOT_STATED),
        Choice("transfer", "measured assignments of an earlier search of the same layers, by the "
               "same metric and score, if you name its log (earlier=FILE)", NOT_STATED),
    ),
    departures=(
        "No precision is pruned: the predictor begins at what single layers lose.",
        "One limit is searched, and not the whole frontier at once.",
        "HQQ's zero points are of the range, and not optimised.",
    ),
    steps=("The paper quantizes the answer by AWQ or GPTQ (--rounding gptq).",),
)  # fmt: skip
