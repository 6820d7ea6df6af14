"""COMET: weights of 4 bits, and blocks of activations at 4 bits, few of them at 8."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

COMET: Final = Recipe(
    name="comet",
    version=1,
    summary="weights at 4 bits, blocks of 128 input channels at 4 bits and few at 8",
    paper=Paper("Liu et al.", 2024, "COMET: Towards Practical W4A4KV4 LLMs Serving", "2410.12168"),
    formula="min over b of sum_k E[g^2 (Q_b(x) - x)^2] over blocks k, within the limits",
    sensitivity="sketch:interactions=false",
    solver="ilp",
    candidates=("w4g128a4dg128", "w4g128a8dg128"),
    constraint="bit operations: those of 4 bits, and as much more as blocks at 8 bits may take",
    split="activations:128",
    choices=(
        Choice("estimator", "squared errors of a block by squared gradients there",
               "the paper looks for outliers; squared gradients: ours"),
        Choice("candidates", "weights at 4 bits, blocks of activations at 4 or 8",
               "the paper, on fine-grained mixed precision"),
        Choice("blocks", "128 consecutive input channels",
               "the paper, on fine-grained mixed precision"),
        Choice("groups", "128 weights share a scale", NOT_STATED),
        Choice("inputs", "a scale for every token and block, found while running", NOT_STATED),
        Choice("solver", "integer linear program over blocks", NOT_STATED),
    ),
    departures=(
        "Blocks at 8 bits are those that lose most at 4, and not those that have outliers.",
        "Channels stay where they are; the paper puts those with outliers into the same blocks.",
        "Weights are rounded to nearest.",
        "Keys and values stay as they came, unless --kv-cache says otherwise.",
    ),
    steps=("The paper stores keys and values in 4 bits (--kv-cache a4d --kv-tokens NUMBER).",),
)  # fmt: skip
