"""SqueezeLLM: codebooks weighted by sensitivity, and some weights beside them as they are."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

SQUEEZELLM: Final = Recipe(
    name="squeezellm",
    version=2,
    summary="codebooks of every channel by weighted k-means, .45 % of the weights kept beside them",
    paper=Paper("Kim et al.", 2023, "SqueezeLLM: Dense-and-Sparse Quantization", "2306.07629"),
    formula="min over levels of sum_i F_ii (w_i - Q(w_i))^2 for each channel; all layers alike",
    sensitivity="fisher",
    solver="ilp",
    candidates=("wcb3+s0.05%g0.4%ma16", "wcb4+s0.05%g0.4%ma16"),
    constraint="memory: weight_bytes or effective_bits; the most bits that it holds",
    rounding="weighted-nearest",
    tie=("*",),
    choices=(
        Choice("estimator", "diagonal Fisher information x squared error",
               "the paper, on sensitivity"),
        Choice("labels", "drawn from the network, as texts have none; the data's: --sensitivity "
               "fisher:labels=targets", "the paper, whose gradients are of the loss of its data"),
        Choice("candidates", "3 bits or 4, all layers the same", "the paper, on the experiments"),
        Choice("levels", "8 or 16 for every output channel, by weighted k-means",
               "the paper, on sensitivity-based non-uniform quantization"),
        Choice("kept weights", "0.05 % by Fisher information, 0.4 % of the others by magnitude",
               "the paper, on dense-and-sparse decomposition"),
        Choice("weights", "each at its nearest level", "the paper, on the method"),
        Choice("solver", "one precision for all layers, by an integer program", NOT_STATED),
    ),
    departures=(
        "Levels are the optimum of k-means, and not Lloyd's from a random start; a hundredth of a "
        "channel's mean Fisher information is added to that of each number.",
        "Kept weights are so many of each layer's, where the paper may have one threshold.",
        "Embeddings and the head are quantized as well, but for those that are left out "
        "(--exclude).",
    ),
)  # fmt: skip
