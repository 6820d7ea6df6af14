"""GWQ: the weights that the loss says matter most are kept, the others have few bits."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

GWQ: Final = Recipe(
    name="gwq",
    version=2,
    summary="1 % of the weights kept, guided by gradients; the others in groups at 3 or 4 bits",
    paper=Paper(
        "Shao et al.", 2024, "GWQ: Gradient-Aware Weight Quantization for Large Language Models",
        "2411.00850",
    ),
    formula="kept: the top 1 % of |dL/dw|, in 16 bits; all layers alike",
    sensitivity="first-order",
    solver="ilp",
    candidates=("w3g64+s1%ga16", "w4g64+s1%ga16"),
    constraint="memory: weight_bytes or effective_bits; the most bits that it holds",
    rounding="weighted-nearest",
    tie=("*",),
    choices=(
        Choice("estimator", "gradient x error", "the paper, on gradients"),
        Choice("labels", "drawn from the network; the data's: --sensitivity "
               "first-order:labels=targets", NOT_STATED),
        Choice("kept weights", "1 %, in 16 bits", "the abstract"),
        Choice("candidates", "3 bits or 4, all layers the same", "the paper, on the experiments"),
        Choice("groups", "64 weights share a scale",
               "the paper, on the method; the size of groups: not stated"),
        Choice("weights", "symmetric, each to nearest", NOT_STATED),
        Choice("solver", "one precision for all layers, by an integer program", NOT_STATED),
    ),
    departures=(
        "Kept are 1 % of each layer's weights.",
        "Gradients are each example's, squared, in the mean over all examples.",
        "Embeddings and the head are quantized as well, but for those that are left out "
        "(--exclude).",
    ),
)  # fmt: skip
