"""Fast 2-bit: groups of 2 bits, and of 4 where the range and the curvature are large."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

FAST_2_BIT: Final = Recipe(
    name="fast-2-bit",
    version=1,
    summary="groups of 2 bits, those of large range and curvature at 4, within each weight",
    paper=Paper(
        "Li et al.",
        2023,
        "Fast and Efficient 2-bit LLM Inference on GPU: 2/4/16-bit in a Weight Matrix with "
        "Asynchronous Dequantization",
        "2311.16442",
    ),
    formula="4 bits where (range of the group)^2 x curvature is largest, as many as fit; others 2",
    sensitivity="column-loss",
    solver="ilp",
    candidates=("w2zg16a16", "w4zg16a16"),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    rounding="gptq",
    split="groups",
    choices=(
        Choice("estimator", "squared range of a group x inverse diagonal of the inverse moment",
               "the abstract, on range and Hessian; their product: not stated"),
        Choice("candidates", "2 bits, and 4 for a small fraction of the groups", "the abstract"),
        Choice("parts", "groups of 16 weights that share a scale",
               "the abstract, on groups; their size: not stated"),
        Choice("solver", "the groups that gain most for their bits, of all layers", NOT_STATED),
        Choice("weights", "by GPTQ, from the least to the largest of a group", NOT_STATED),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "No outliers are kept in 16 bits: groups with bits of their own have none beside them.",
        "Scales are in 16 bits, and not quantized a second time.",
        "Groups of 4 bits lie anywhere, where the paper aligns them in memory.",
        "Which group has which bits counts in the bytes, where a weight uses both.",
    ),
)  # fmt: skip
