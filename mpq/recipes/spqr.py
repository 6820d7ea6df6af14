"""SpQR: tiny groups with quantized scales, by GPTQ, and the outliers beside them."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

SPQR: Final = Recipe(
    name="spqr",
    version=2,
    summary="groups of 16 whose scales are quantized, 1 % outliers by what losing them costs, GPTQ",
    paper=Paper(
        "Dettmers et al.",
        2023,
        "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
        "2306.03078",
    ),
    formula="outliers: the largest (w - Q(w))^2 / (2 [(X X^T)^-1]_ii); all layers alike",
    sensitivity="layer-output:relative=false",
    solver="ilp",
    candidates=("w3zg16sdq+s1%ea16", "w4zg16sdq+s1%ea16"),
    constraint="memory: weight_bytes or effective_bits; the most bits that it holds",
    rounding="gptq",
    tie=("*",),
    choices=(
        Choice("estimator", "squared error of a layer's outputs",
               "the paper, on parameter sensitivity"),
        Choice("candidates", "3 bits or 4, all layers the same", "the abstract"),
        Choice("groups", "16 weights share a scale and a zero point", "the paper, on small groups"),
        Choice("scales", "quantized a second time", "the paper, on bilevel quantization"),
        Choice("outliers", "about 1 % of the weights, in 16 bits",
               "the paper, on outliers, which has a threshold"),
        Choice("weights", "by GPTQ, from the least to the largest of a group",
               "the paper, on the algorithm"),
        Choice("solver", "one precision for all layers, by an integer program", NOT_STATED),
    ),
    departures=(
        "Scales are integers of 8 bits, 256 with a step of their own, and zero points have as many "
        "bits as codes; the paper has 3 bits for both, in groups of 16.",
        "Each weight has the same share of outliers, where the paper's threshold decides.",
        "An outlier counts by its own error to nearest, on the scale that its group has with it; "
        "the paper counts what its group's error falls by without it.",
        "The second moment is weighted, half of it, by squared gradients.",
        "Embeddings and the head are quantized as well, but for those that are left out "
        "(--exclude).",
    ),
)  # fmt: skip
