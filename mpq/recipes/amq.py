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
               "on pruning of the space"),
        Choice("candidates", "2, 3 or 4 bits", "on the space"),
        Choice("groups", "128 weights share a scale", "on the space"),
        Choice("weights", "HQQ's zero points, to nearest, as a proxy", "on the proxy"),
        Choice("solver", "iterations of search, measuring and fitting the predictor",
               "on the predictor; its kind and the number of measurements are ours"),
        Choice("predictor", "the sum over layers, corrected by what was measured", NOT_STATED),
    ),
    departures=(
        "No precision is pruned: the predictor begins at what single layers lose.",
        "One limit is searched, and not the whole frontier at once.",
        "HQQ's zero points are of the range, and not optimised.",
    ),
    steps=("the answer quantized by AWQ or GPTQ (--rounding gptq)",),
)  # fmt: skip
